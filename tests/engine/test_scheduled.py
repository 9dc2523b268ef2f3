"""The scheduled engine against plain loops: on one process to the bit, on several within rounding.

Why not to the bit there: a pipeline sums the gradients of micro-batches, a plain loop those of all samples at once, so
that the same numbers are added in another order. A plain loop over the micro-batches adds them in the order of the
pipeline, and is met to the bit. SGD is used where the two are compared: AdamW divides a gradient by its own size, which
makes steps out of the rounding of gradients that are nearly zero.
"""

import math
from functools import cache
from itertools import accumulate

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from counterflow.composition import configure
from counterflow.engine.job import Job, prepare
from counterflow.engine.station import Waits
from counterflow.engine.system import build, cut
from counterflow.transport import connect
from processes import CONF, Pool
from runs import SMALL

STEPS = 20
WIDTH = ("model.width=32", f"train.steps={STEPS}", "train.evaluate_every=0")
SGD = ("optimizer=sgd", *WIDTH)
CNN = ("model=cnn", "model.channels=[4,4,6,6]", "model.strides=[1,2,1,1]", f"train.steps={STEPS}", "optimizer=sgd")
PIPELINES = {
    "gpipe on 2": (2, ("schedule=gpipe",)),
    "gpipe on 4": (4, ("schedule=gpipe",)),
    "1f1b on 2": (2, ("schedule=1f1b",)),
    "1f1b on 4": (4, ("schedule=1f1b",)),
    "interleaved1f1b on 2": (2, ("schedule=interleaved1f1b",)),
    "zbv on 2": (2, ("schedule=zbv",)),
}
Weights = dict[str, np.ndarray]
"""Of all layers by their names in the network: parameters and buffers."""


class Losses:
    """An observer that keeps the losses at the top."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def learnt(self, block: int, n: int, metrics: dict[str, Tensor]) -> None:
        if metrics:
            self.losses[n] = float(metrics["loss"])

    def evaluated(self, block: int, n: int, accuracy: float | None) -> None:
        pass


def rank_weights(rank: int, size: int, store_path: str, overrides: list[str]) -> tuple[Weights, dict[int, float]]:
    """The layers that this rank has trained, and the losses if it has the top."""
    config = configure(CONF, overrides)
    job = prepare(config, size)
    world = connect(dist.FileStore(store_path, size) if size > 1 else None, rank, size, timeout=config.engine.timeout)
    counts = cut(job, world)
    system = build(job, counts)
    losses = Losses()
    system.run(world, losses, Waits())
    world.gather(None, "the end")
    world.close()
    ends = list(accumulate(counts))
    owners = [system.owners[sum(end <= layer for end in ends)] for layer in range(len(job.network))]
    mine = {
        name: value.numpy().copy()
        for name, value in job.network.state_dict().items()
        if owners[int(name.split(".")[0])] == rank
    }
    return mine, losses.losses


def trained(pool: Pool, ranks: int, *overrides: str) -> tuple[Weights, dict[int, float]]:
    """The whole network, put together from what every rank owns, and the losses."""
    results = pool.run(ranks, rank_weights, [*SMALL, "algorithm=bp", *overrides])
    weights: Weights = {}
    for mine, _ in results:
        assert mine
        assert not mine.keys() & weights.keys(), "two ranks own a layer"
        weights |= mine
    return weights, {n: loss for _, losses in results for n, loss in losses.items()}


def prepared(*overrides: str) -> Job:
    return prepare(configure(CONF, [*SMALL, "algorithm=bp", *overrides]), 1)


def plain(job: Job, parts: int = 1) -> tuple[Weights, dict[int, float]]:
    """Train the network of ``job`` in a loop, micro-batch after micro-batch, on the mean of their gradients."""
    network, losses = job.network, {}
    adamw = job.config.optimizer.name == "adamw"
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(network.parameters(), weight_decay=0.0)
        if adamw
        else torch.optim.SGD(network.parameters(), momentum=0.9)
    )
    for n in range(job.plan.batches):
        x, y = job.batches.inputs(n), job.batches.labels(n)
        loss = torch.zeros(())
        for inputs, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
            part = F.cross_entropy(network(inputs), labels)
            part.backward()
            loss += part.detach() / parts
        for parameter in network.parameters():
            assert parameter.grad is not None
            if parts > 1:
                parameter.grad /= parts
        rate = 0.5 * (1 + math.cos(math.pi * n / job.plan.batches))
        optimizer.param_groups[0]["lr"] = (1e-3 if adamw else 0.1) * rate
        optimizer.step()
        optimizer.zero_grad()
        losses[n] = loss.item()
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}, losses


@cache
def loop(parts: int, *overrides: str) -> tuple[Weights, dict[int, float]]:
    return plain(prepared(*overrides), parts)


def distance(ours: Weights, expected: Weights) -> float:
    """The largest relative difference of a parameter tensor, in the Euclidean norm."""
    assert ours.keys() == expected.keys()
    return max(
        float(np.linalg.norm((ours[name] - expected[name]).ravel()) / np.linalg.norm(expected[name].ravel()))
        for name in expected
    )


def assert_equal(ours: Weights, expected: Weights) -> None:
    assert ours.keys() == expected.keys()
    differ = [name for name in expected if not np.array_equal(ours[name], expected[name])]
    assert not differ, f"of {len(expected)}: {differ}"


# One process


@pytest.mark.parametrize("schedule", ["auto", "gpipe", "1f1b"])
def test_bp_on_one_process_is_a_plain_loop_to_the_bit(pool: Pool, schedule: str) -> None:
    ours, losses = trained(pool, 1, *WIDTH, f"schedule={schedule}")
    expected, expected_losses = loop(1, *WIDTH)
    assert_equal(ours, expected)
    assert losses == expected_losses


@pytest.mark.parametrize("overrides", [SGD, CNN], ids=["mlp", "cnn with batch norm"])
def test_so_it_is_with_other_models_and_optimizers(pool: Pool, overrides: tuple[str, ...]) -> None:
    assert_equal(trained(pool, 1, *overrides)[0], loop(1, *overrides)[0])


# Several


@pytest.mark.parametrize("name", PIPELINES)
def test_bp_on_a_pipeline_is_the_plain_loop_within_rounding(pool: Pool, name: str) -> None:
    ranks, schedule = PIPELINES[name]
    ours, losses = trained(pool, ranks, *SGD, *schedule)
    expected, expected_losses = loop(1, *SGD)
    print(name, distance(ours, expected))
    assert distance(ours, expected) < 1e-6
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert distance(ours, loop(1, *SGD, "train.steps=19")[0]) > 1e-4, "one update more or less is seen"


@pytest.mark.parametrize("name", PIPELINES)
def test_bp_on_a_pipeline_is_a_loop_over_micro_batches_to_the_bit(pool: Pool, name: str) -> None:
    ranks, schedule = PIPELINES[name]
    ours, _ = trained(pool, ranks, *SGD, *schedule)
    print(name, distance(ours, loop(4, *SGD)[0]))
    assert_equal(ours, loop(4, *SGD)[0])


@pytest.mark.parametrize("name", PIPELINES)
def test_batch_norm_sees_micro_batches(pool: Pool, name: str) -> None:
    ranks, schedule = PIPELINES[name]
    ours, _ = trained(pool, ranks, *CNN, *schedule)
    print(name, distance(ours, loop(4, *CNN)[0]), distance(ours, loop(1, *CNN)[0]))
    assert_equal(ours, loop(4, *CNN)[0])
    assert distance(ours, loop(1, *CNN)[0]) > 1e-2, "which is not what a loop over batches computes"
