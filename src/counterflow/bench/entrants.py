"""The contenders that several suites share."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import lcm
from pathlib import Path

import numpy as np

from counterflow.bench.contender import Contender, train
from counterflow.bench.sleeping import Sleep
from counterflow.cli.hydra_app import load_config
from counterflow.config import CustomConfig

_SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved1f1b": "interleaved 1F1B", "zbv": "ZBV"}
_TWO_STAGES = ("interleaved1f1b", "zbv")
"""Schedules with two stages a rank, of half the time each."""
_ABOUT = 96
"""Samples of an update batch of blocks that sleep."""


def title(schedule: str, microbatches: int) -> str:
    """The name of a pipeline of backprop in tables."""
    return f"{_SCHEDULES[schedule]} m={microbatches}"


def convolutions(count: int) -> list[str]:
    """The network of contenders that compute: so many convolutions of 48 channels, and an output layer."""
    return [
        "model=cnn",
        f"model.channels={[48] * count}",
        f"model.strides={[1] * count}",
        "optimizer=sgd",
        "optimizer.lr=0.01",
    ]


def noise(folder: Path, samples: int, pixels: int, channels: int) -> None:
    """Random pictures of ten classes where ``data=image_folder data.root=folder`` finds them."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (samples, pixels, pixels, channels), dtype=np.uint8)
    labels = np.arange(samples) % 10
    np.savez(folder / "noise.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)


def common_batch(microbatches: Sequence[int]) -> int:
    """Samples of an update batch that all of ``microbatches`` divide."""
    whole = lcm(*microbatches)
    return whole * max(1, _ABOUT // whole)


def pipelines(ranks: int, microbatches: int) -> list[str]:
    """Torch's schedules that run with so many micro-batches."""
    fits = {
        "gpipe": True,
        "1f1b": microbatches >= ranks,
        "interleaved1f1b": ranks > 1 and microbatches % ranks == 0,
        "zbv": microbatches >= 2 * ranks,
    }
    return [schedule for schedule, fit in fits.items() if fit]


def asleep(
    conf: Path,
    data: Path,
    schedule: str,
    sleeping: Sleep,
    ranks: int,
    batches: int,
    microbatches: int = 1,
    options: Sequence[str] = (),
    name: str | None = None,
) -> Contender:
    """One of equal blocks that sleep, under ``schedule``; ``data`` holds `noise`.

    ``sleeping`` is for a rank: where a schedule wants two stages on each, they share it.
    """
    stages = 2 if schedule in _TWO_STAGES else 1
    times = {name: getattr(sleeping, name) / stages for name in ("forward", "backward", "update")}
    part = replace(sleeping, **times)
    blocks = ranks * stages
    free = schedule == "free"
    config = load_config(
        conf,
        [
            f"algorithm={'bll' if free else 'bp'}",
            f"schedule={schedule}",
            "model=custom",
            "model.target=counterflow.bench.sleeping.network",
            f"model.cut={[1] * blocks}",
            f"blocks={blocks}",
            f"train.microbatches={microbatches}",
            "optimizer=sgd",
            *common(data, sleeping.batch),
            *options,
        ],
    )
    assert isinstance(config.model, CustomConfig)
    config.model.args = {"blocks": blocks, "sleep": asdict(part)}
    return Contender(
        name=name or ("BLL" if free else title(schedule, microbatches)),
        ranks=ranks,
        config=config,
        batches=batches,
        warm=batches // 3 if free else 1,
        task=train,
        sleep=part,
        microbatches=None if free else microbatches,
    )


def awake(
    conf: Path, data: Path, name: str, ranks: int, batches: int, warm: int, batch: int, options: Sequence[str]
) -> Contender:
    """One that computes, with the learning system, schedule and network that ``options`` name."""
    config = load_config(conf, [*common(data, batch), *options])
    local = config.algorithm.name not in ("bp", "fa")
    return Contender(name, ranks, config, batches, warm, train, None, None if local else config.train.microbatches)


def common(data: Path, batch: int) -> list[str]:
    """Options that all contenders share: one thread a process, the same data, no evaluation, as long as wanted."""
    return [
        "data=image_folder",
        f"data.root={data}",
        "data.validation=0.0",
        f"train.batch_size={batch}",
        "train.epochs=1000000",
        "checkpoint.every=0",
        "engine.threads=1",
        "device=cpu",
    ]
