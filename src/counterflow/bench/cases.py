"""Builders of the benchmark cases that the suites share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path

import numpy as np

from counterflow.algorithms import END_TO_END
from counterflow.bench.case import BenchmarkCase, train
from counterflow.bench.sleeping import Sleep, SleepingAlgorithm
from counterflow.cli.hydra_app import load_config
from counterflow.config import CustomConfig, TrainConfig

_LABELS = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved1f1b": "interleaved 1F1B", "zbv": "ZBV"}


def schedule_label(schedule: str, microbatches: int) -> str:
    """Name in tables of BLL, whose schedule is ``free``, or of a pipeline of backprop."""
    return "BLL" if schedule == "free" else f"{_LABELS[schedule]} m={microbatches}"


def conv_network(count: int) -> list[str]:
    """Options of the network that training cases compute: ``count`` convolutions of 48 channels and an output layer."""
    return [
        "model=cnn",
        f"model.channels={[48] * count}",
        f"model.strides={[1] * count}",
        "optimizer=sgd",
        "optimizer.lr=0.01",
    ]


def common_batch(microbatches: Sequence[int]) -> int:
    """Samples of an update batch that all of ``microbatches`` divide, about 96."""
    multiple = lcm(*microbatches)
    return multiple * max(1, 96 // multiple)


def valid_schedules(ranks: int, microbatches: int) -> list[str]:
    """The schedules of torch that run with ``microbatches`` on ``ranks``."""
    valid = {
        "gpipe": True,
        "1f1b": microbatches >= ranks,
        "interleaved1f1b": ranks > 1 and microbatches % ranks == 0,
        "zbv": microbatches >= 2 * ranks,
    }
    return [schedule for schedule, is_valid in valid.items() if is_valid]


@dataclass(frozen=True)
class CaseFactory:
    """Makes cases from a configuration folder, all of which train on the same random images."""

    data: Path
    """Folder of the images, see `write_images`."""

    def write_images(self, samples: int, pixels: int, channels: int) -> None:
        """Write ``samples`` random square images of ten classes into the data folder, for training and test."""
        images = np.random.default_rng(0).integers(0, 256, (samples, pixels, pixels, channels), dtype=np.uint8)
        labels = np.arange(samples) % 10
        np.savez(
            self.data / "noise.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels
        )

    def config(self, batch: int, options: Sequence[str]) -> TrainConfig:
        """Configuration for ``batch`` samples per update: one thread, no evaluation, as many epochs as needed."""
        return load_config(
            [
                "data=image_folder",
                f"data.root={self.data}",
                "data.validation=0.0",
                f"train.batch_size={batch}",
                "train.epochs=1000000",
                "checkpoint.every=0",
                "engine.threads=1",
                "device=cpu",
                *options,
            ]
        )

    def training(
        self, name: str, ranks: int, batches: int, warmup: int, batch: int, options: Sequence[str]
    ) -> BenchmarkCase:
        """A case that computes.

        Args:
            name: Name in tables.
            ranks: Processes.
            batches: Update batches of one measurement.
            warmup: The first of these, which are not timed.
            batch: Samples of an update batch.
            options: Overrides that choose the algorithm, the schedule and the network.
        """
        config = self.config(batch, options)
        return BenchmarkCase(
            name=name,
            ranks=ranks,
            config=config,
            batches=batches,
            warmup=warmup,
            task=train,
            microbatches=config.train.microbatches if config.algorithm.name in END_TO_END else None,
        )

    def sleeping(
        self,
        schedule: str,
        sleep: Sleep,
        ranks: int,
        batches: int,
        microbatches: int = 1,
        options: Sequence[str] = (),
        name: str | None = None,
    ) -> BenchmarkCase:
        """A case of equal blocks that sleep.

        Args:
            schedule: ``free`` for BLL, or a pipeline of backprop.
            sleep: Times of a rank. Where a schedule has two stages per rank, they share these times.
            ranks: Processes, one for each block of each replica.
            batches: Update batches of one measurement.
            microbatches: Parts of an update batch, for a pipeline.
            options: Overrides beside those that the other arguments set.
            name: Name in tables; None for that of the schedule.
        """
        stages = 2 if schedule in ("interleaved1f1b", "zbv") else 1  # of a rank, which share its time
        times = {key: getattr(sleep, key) / stages for key in ("forward", "backward", "update")}
        stage_sleep, blocks, local = replace(sleep, **times), ranks * stages // sleep.replicas, schedule == "free"
        config = self.config(
            sleep.batch,
            [
                f"algorithm={'bll' if local else 'bp'}",
                f"schedule={schedule}",
                "model=custom",
                "model.target=counterflow.bench.sleeping.sleeping_network",
                f"model.cut={[1] * blocks}",
                f"blocks={blocks}",
                f"replicas={sleep.replicas}",
                f"train.accumulate={sleep.parts}",
                f"train.microbatches={microbatches}",
                "optimizer=sgd",
                *options,
            ],
        )
        assert isinstance(config.model, CustomConfig)
        config.model.args = {"blocks": blocks, "sleep": stage_sleep}
        if local:
            config.algorithm = SleepingAlgorithm(sleep=stage_sleep)
        return BenchmarkCase(
            name=name or schedule_label(schedule, microbatches),
            ranks=ranks,
            config=config,
            batches=batches,
            warmup=batches // 3 if local else 1,
            task=train,
            sleep=stage_sleep,
            microbatches=None if local else microbatches,
        )
