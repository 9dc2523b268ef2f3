"""Suite ``loader``: images per second that enter a network, from memory and from files by worker processes."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from counterflow.bench.options import BenchContext
from counterflow.bench.results import CaseResult, SuiteResult
from counterflow.config import DataConfig
from counterflow.data import load
from counterflow.data.batch_loader import BatchKey, BatchLoader, EpochSampler
from counterflow.data.items import Items
from counterflow.data.prefetch import prefetch
from counterflow.data.reader_pool import ReaderPool

_BATCH = 64
_WORKERS = (0, 1, 2)
_TIMEOUT = 300.0
"""Seconds for one batch."""


class _Files(NamedTuple):
    """Square images of noise in files."""

    pixels: int
    images: int
    suffix: str

    def __str__(self) -> str:
        return f"{self.suffix} {self.pixels}x{self.pixels}"


_SIZES = (_Files(32, 8192, "png"), _Files(224, 1024, "jpeg"))


class _Times(NamedTuple):
    start: float
    """Seconds until the first batch is asked for: listing, reading into memory, moments."""
    epoch: float
    """Seconds for all batches of an epoch."""


def measure_loader(context: BenchContext) -> SuiteResult:
    """Batches that are cropped, flipped and normalised, and then dropped."""
    results: list[CaseResult] = []
    for files in _SIZES:
        if context.options.quick:
            files = files._replace(images=files.images // 8)
        root = context.cases.data / str(files)
        context.log(f"writes {files.images} files, {files}")
        _write(root, files)
        times: dict[int, list[_Times]] = {workers: [] for workers in _WORKERS}
        for number in range(context.options.rounds):
            for workers in _WORKERS if number % 2 == 0 else reversed(_WORKERS):
                context.log(f"{files}, {workers} workers")
                times[workers].append(_measure(root, workers))
        results += _results(files, times)
    return SuiteResult(
        "loader",
        settings={"images": "noise, cropped and flipped", "rounds": context.options.rounds},
        cases=results,
        goals=[],
    )


def _write(root: Path, files: _Files) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", files.images), ("test", 10)):
        for number in range(count):
            pixels = generator.integers(256, size=(files.pixels // 8, files.pixels // 8, 3), dtype=np.uint8)
            path = root / split / str(number % 10) / f"{number}.{files.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((files.pixels, files.pixels)).save(path)


def _measure(root: Path, workers: int) -> _Times:
    begin = time.perf_counter()
    config = DataConfig(name="image_folder", root=str(root), workers=workers, augment=True)
    dataset = load(config)
    batches = BatchLoader(dataset, config, EpochSampler(len(dataset.train), _BATCH, seed=1))
    with _reading(batches) as batches:
        _ = batches.moments
        started = time.perf_counter()
        keys = [BatchKey(n) for n in range(batches.order.steps_per_epoch)]
        deque(prefetch(batches.stream("inputs", keys, keys)), maxlen=0)
        return _Times(started - begin, time.perf_counter() - started)


@contextmanager
def _reading(batches: BatchLoader) -> Iterator[BatchLoader]:
    if not batches.config.workers:
        yield batches
        return
    sources = {name: source for name, source in batches.sources.items() if isinstance(source, Items)}
    pool = ReaderPool(batches.config.workers, sources, _TIMEOUT)
    try:
        yield replace(batches, workers=pool)
    finally:
        pool.close()


def _results(files: _Files, times: dict[int, list[_Times]]) -> Iterator[CaseResult]:
    images = files.images // _BATCH * _BATCH
    for workers, measured in times.items():
        rates = [images / one.epoch for one in measured]
        ratios = [memory.epoch / one.epoch for one, memory in zip(measured, times[0], strict=True)]
        yield CaseResult(
            name=_name(files, workers),
            ranks=1,
            samples_per_second=median(rates),
            lowest=min(rates),
            highest=max(rates),
            baseline=_name(files, 0),
            ratio_to_baseline=median(ratios),
            ratio_lowest=min(ratios),
            ratio_highest=max(ratios),
            batch=_BATCH,
            repeats=len(measured),
            extra={"seconds_before_the_first_batch": median(one.start for one in measured)},
        )


def _name(files: _Files, workers: int) -> str:
    return f"{files}, {f'workers={workers}' if workers else 'in memory'}"
