"""Runs on data that is read by batch: the bits of data in memory, of any number of readers, after real kills."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore
from torch.utils.data import Dataset

import counterflow as cf
from counterflow.config import MLPConfig
from tests.helpers.data import stripes
from tests.helpers.elastic import Elastic, alive, children
from tests.helpers.kills import LIMIT, until, until_checkpoint
from tests.helpers.processes import run_fresh

JOB = (
    "data=image_folder", "model=cnn", "model.channels=[4,4,4]", "model.strides=[2,1,2]", "algorithm.head.width=4",
    "blocks=3", "data.augment=true", "data.validation=0.1", "train.batch_size=16", "train.epochs=2",
    "train.evaluate_every=7", "engine.threads=1", "engine.timeout=60", "run.display=false", "run.loggers=[]",
)  # fmt: skip
LONG = (*JOB, "train.epochs=20", "checkpoint.every=10")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for split, size in (("train", 200), ("test", 30)):
        images, labels = stripes(size, seed=len(split))
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / f"class {int(label)}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def fingerprint(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["fingerprint"])


def trained(ranks: int, run: Path, *options: str) -> str:
    job = Elastic.start(ranks, run.with_suffix(".log"), *options, f"run.dir={run}")
    assert job.wait(LIMIT) == 0, job.output()
    return fingerprint(run)


@pytest.mark.parametrize(
    ("options", "ranks"),
    [((), 3), (("algorithm=al", "algorithm.dim=8"), 2), (("algorithm=bp", "schedule=1f1b"), 2)],
    ids=["bll", "al", "bp"],
)
def test_the_bits_are_those_of_data_in_memory(root: Path, tmp_path: Path, options: tuple[str, ...], ranks: int) -> None:
    job = (*(o for o in JOB if options[:1] != ("algorithm=bp",) or "head" not in o), *options, f"data.root={root}")
    known = trained(ranks, tmp_path / "memory", *job)
    assert trained(ranks, tmp_path / "two", *job, "data.workers=2") == known
    if "algorithm=bp" not in options:
        assert trained(1, tmp_path / "alone", *job, "data.workers=1") == known


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return trained(1, tmp_path_factory.mktemp("unbroken") / "run", *LONG, f"data.root={root}")


def readers(job: Elastic, ranks: int, supervised: bool = False) -> list[int]:
    """Processes of the readers once rank 0 has both, which is before there is a checkpoint."""
    trainers = [child for worker in job.workers() for child in children(worker)] if supervised else job.workers()
    assert len(trainers) == ranks
    return [child for trainer in trainers for child in children(trainer)]


def gone(pids: list[int], job: Elastic) -> None:
    until(lambda: not any(alive(pid) for pid in pids), job, 10)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_leaves_no_reader_and_the_restarted_run_has_the_same_bits(
    root: Path, tmp_path: Path, unbroken: str, rank: int
) -> None:
    run = tmp_path / "run"
    options = (*LONG, f"data.root={root}", "data.workers=2", f"run.dir={run}")
    job = Elastic.start(3, tmp_path / "log", *options, restarts=1)
    until_checkpoint(job, run)
    before = readers(job, 3)
    assert len(before) == 2, "rank 0 alone reads inputs, and knows the labels"
    assert job.kill(sorted(job.workers())[rank])
    gone(before, job)
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == unbroken


def test_a_replaced_rank_begins_with_readers_of_its_own(root: Path, tmp_path: Path, unbroken: str) -> None:
    run = tmp_path / "run"
    options = (*LONG, f"data.root={root}", "data.workers=2", "engine.recovery=rank", f"run.dir={run}")
    job = Elastic.start(2, tmp_path / "log", *options, restarts=1)
    until_checkpoint(job, run)
    before = readers(job, 2, supervised=True)
    assert len(before) == 2
    os.kill(children(sorted(job.workers())[0])[0], signal.SIGKILL)
    gone(before, job)
    assert job.wait(LIMIT) == 0, job.output()
    assert "lost rank" not in job.output()
    assert fingerprint(run) == unbroken


def test_a_killed_reader_ends_the_run_with_one_line(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Elastic.start(2, tmp_path / "log", *LONG, f"data.root={root}", "data.workers=2", f"run.dir={run}")
    until_checkpoint(job, run)
    start = time.monotonic()
    os.kill(readers(job, 2)[0], signal.SIGKILL)
    assert job.wait(LIMIT) != 0
    assert time.monotonic() - start < 20
    lines = [line for line in job.output().splitlines() if "data.workers" in line]
    assert len(lines) == 1, job.output()
    assert "rank 0: block 1: " in lines[0]
    assert "ReaderError: data.workers=2: a worker ended (status -9)" in lines[0]
    assert "Traceback" not in job.output()


def test_an_orderly_end_waits_for_a_checkpoint(root: Path, tmp_path: Path, unbroken: str) -> None:
    run = tmp_path / "run"
    options = (*LONG, f"data.root={root}", "data.workers=2", f"run.dir={run}")
    job = Elastic.start(2, tmp_path / "log", *options)
    until_checkpoint(job, run)
    before = readers(job, 2)
    for pid in (*before, *job.workers()):
        os.kill(pid, signal.SIGTERM)
    job.wait(60)
    assert "note: SIGTERM: stopped after batch " in job.output()
    gone(before, job)
    assert trained(1, run, *LONG, f"data.root={root}", "data.workers=1") == unbroken


def test_a_damaged_file_ends_the_run_with_one_line(root: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "images"
    for path in root.rglob("*.png"):
        copy = damaged / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, copy)
    victims = sorted(damaged.glob("train/class 1/*.png"))
    for victim in victims[1:]:
        content = victim.read_bytes()
        victim.unlink()
        victim.write_bytes(content[:60])
    # Moments are taken of all images, before there is a run.
    job = Elastic.start(
        2, tmp_path / "log", *JOB, f"data.root={damaged}", "data.workers=2", f"run.dir={tmp_path / 'r'}"
    )
    assert job.wait(LIMIT) != 0
    lines = [line for line in job.output().splitlines() if "cannot be read" in line]
    assert len(lines) == 1, job.output()
    assert "train/class 1/" in lines[0]
    assert "Traceback" not in job.output()


class Noisy(Dataset[Any]):
    """Numbers with noise of three generators, and no `targets`."""

    classes = ("low", "high")

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % 2
        noise = torch.randn(6) + float(np.random.rand()) + random.random()
        return noise + 2 * label, label


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def _fit(rank: int, size: int, store_path: str, port: int, workers: int, options: dict[str, Any]) -> None:
    environment = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")
    trainer = cf.Trainer(network, blocks=3, engine=cf.EngineConfig(threads=1, timeout=60))
    result = trainer.fit(Noisy(96), Noisy(20), workers=workers, batch_size=8, validation=0.1, loggers=(), **options)
    print("children", len(children(os.getpid())))
    print(result.fingerprint)


def fitted(ranks: int, workers: int, **options: Any) -> str:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ended = run_fresh(ranks, _fit, store.port, workers, options, timeout=100)
    assert [end.status for end in ended] == [0] * ranks, [end.stderr for end in ended]
    assert all("children 0" in end.stdout for end in ended)
    (found,) = {end.stdout.split()[-1] for end in ended}
    return found


def test_a_dataset_draws_anew_in_every_epoch_and_the_bits_are_the_same_everywhere(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 4, "evaluate_every": 5}
    known = fitted(1, 1, **options)
    assert fitted(1, 3, **options) == known
    assert fitted(3, 2, **options) == known
    run: dict[str, Any] = {**options, "run_dir": tmp_path / "run", "checkpoint": cf.CheckpointConfig(every=8, keep=9)}
    assert fitted(2, 2, **run) == known
    _interrupt(tmp_path / "run", 16)
    assert fitted(3, 1, **run) == known
    assert fitted(1, 0, **options) != known, "read once, the noise is the same in every epoch"


def _interrupt(run: Path, batches: int) -> None:
    (run / "summary.json").unlink()
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("batch-")) > batches:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


def test_an_early_end_is_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 30, "evaluate_every": 5, "patience": 1}
    known = fitted(1, 2, run_dir=tmp_path / "one", **options)
    steps = json.loads((tmp_path / "one" / "summary.json").read_text())["steps"]
    assert steps < 30 * 10
    assert fitted(3, 1, **options) == known


def _memory(rank: int, size: int, store_path: str, root: str) -> None:
    from counterflow.trainer import fit

    inside: list[int] = []
    known = fit.fit

    def measured(*args: Any, **kwargs: Any) -> Any:
        result = known(*args, **kwargs)
        for pid in (os.getpid(), *children(os.getpid())):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            inside.append(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
        return result

    fit.fit = measured
    trainer = cf.Trainer(MLPConfig(width=8, hidden=1), blocks=2, engine=cf.EngineConfig(threads=1))
    trainer.fit(cf.DataConfig(name="image_folder", root=root, workers=1), steps=20)
    print(*inside)


def memory(root: Path) -> Iterator[int]:
    (ended,) = run_fresh(1, _memory, str(root), timeout=100)
    assert ended.status == 0, ended.stderr
    return map(int, ended.stdout.split()[-2:])


def test_private_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "one.png")
    for name, count in (("few", 100), ("many", 40_000)):
        for split, files in (("train", count), ("test", 20)):
            for i in range(files):
                folder = tmp_path / name / split / f"class {i % 20}"
                if i < 20:
                    folder.mkdir(parents=True)
                os.link(tmp_path / "one.png", folder / f"a rather long name of a file {i:09}.png")
    few, many = memory(tmp_path / "few"), memory(tmp_path / "many")
    for before, after in zip(few, many, strict=True):
        assert after - before < 4 << 10, "kilobytes; a list of names alone would be 6 MB, labels and indices 1 MB"
