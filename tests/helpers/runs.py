"""Small real runs on the processes of a test, with faults and delays at the transport boundary."""

import random
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist

from counterflow.checkpoint import CheckpointWriter
from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig
from counterflow.engine.run_context import RunContext
from counterflow.message import Tag
from counterflow.rank_info import RankInfo
from counterflow.trainer.fit import fit
from counterflow.trainer.job_builder import load_job
from counterflow.trainer.rank0 import open_run_dir
from counterflow.transport import Communicator, Payload, connect
from tests.helpers.processes import Pool

SMALL = (
    "train.batch_size=32",
    "train.steps=12",
    "train.evaluate_every=5",
    "train.log_every=4",
    "engine.threads=1",
    "engine.timeout=30",
    "run.display=false",
    "checkpoint.every=0",
)


class Delayed:
    """A channel whose operations are late by up to ``most`` seconds."""

    def __init__(self, channel: Any, most: float, seed: int) -> None:
        self._channel = channel
        self._most = most
        self._random = random.Random(seed)

    def _sleep(self) -> None:
        time.sleep(self._random.random() * self._most)

    def send(self, tag: Tag, tensors: Payload) -> None:
        self._sleep()
        self._channel.send(tag, tensors)

    def receive(self, tag: Tag) -> Payload:
        self._sleep()
        return self._channel.receive(tag)

    def release(self) -> None:
        self._sleep()
        self._channel.release()

    def close(self) -> None:
        self._channel.close()


def delay(comm: Communicator, most: float, seed: int) -> None:
    """Make every remote channel of ``comm`` late at random."""
    sender, receiver = comm.sender, comm.receiver
    comm.sender = lambda edge, *a: Delayed(sender(edge, *a), most, hash((seed, edge.source)))  # type: ignore[method-assign]
    comm.receiver = lambda edge, *a: Delayed(receiver(edge, *a), most, hash((seed, edge.source, 1)))  # type: ignore[method-assign]


def unrecorded(comm: Communicator, callback: Any) -> RunContext:
    """The context of a run that leaves nothing on the disk."""
    return RunContext(comm, callback, CheckpointWriter())


@cache
def configuration(*overrides: str) -> TrainConfig:
    """The configuration with ``overrides``, composed once: on every rank of every run it would be half of the time."""
    return load_config(overrides)


def train_rank(
    rank: int, size: int, store_path: str, config: TrainConfig, most: float, seed: int, folder: Path | None = None
) -> Any:
    """Train as ``launch/train.py`` does, but meet in a file; the summary on every rank."""
    with nullcontext(folder) if folder else TemporaryDirectory(prefix="counterflow-run-") as path:
        return _train_in(str(path), rank, size, store_path, config, most, seed)


def _train_in(folder: str, rank: int, size: int, store_path: str, config: TrainConfig, most: float, seed: int) -> Any:
    config = replace(config, run=replace(config.run, dir=folder))
    job = load_job(config, RankInfo(rank, size))
    store = dist.FileStore(store_path, size) if size > 1 else None
    comm = connect(store, rank, size, timeout=config.engine.timeout)
    if most:
        delay(comm, most, seed)
    point = open_run_dir(job, config, lambda text: None) if rank == 0 else None
    with nullcontext() if point is None or point.directory is None else point.directory:
        result = fit(job, config, comm, point)
    comm.close()
    assert result is not None
    return dict(result.summary)


def summary_of(
    pool: Pool, ranks: int, *overrides: str, delays: float = 0.0, seed: int = 0, directory: Path | None = None
) -> dict[str, Any]:
    """The summary of a small run on ``ranks`` processes of the pool."""
    summary = pool.run(ranks, train_rank, configuration(*SMALL, *overrides), delays, seed, directory)[0]
    assert isinstance(summary, dict)
    return summary
