"""The pipelined engine against plain loops: on one process to the bit, on several within rounding.

Why not to the bit there: a pipeline sums the gradients of micro-batches, a plain loop those of all samples at once, so
that the same numbers are added in another order. A plain loop over the micro-batches adds them in the order of the
pipeline, and is met to the bit. SGD is used where the two are compared: AdamW divides a gradient by its own size, which
makes steps out of the rounding of gradients that are nearly zero.
"""

import math
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from counterflow.algorithms.end_to_end import FeedbackAlignment
from counterflow.cli.errors import exit_with_error
from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig
from counterflow.engine import pipelined
from counterflow.engine.factory import build_engine, choose_partition
from counterflow.engine.job import Job
from counterflow.engine.run_context import BlockError, WaitTimes
from counterflow.rank_info import RankInfo
from counterflow.trainer.job_builder import load_job
from counterflow.transport import ChannelError, connect
from tests.helpers.processes import Ended, Pool, run_fresh
from tests.helpers.runs import SMALL, configuration, summary_of, train_rank, unrecorded

STEPS = 12
WIDTH = ("model.width=32", f"train.steps={STEPS}", "train.evaluate_every=0")
SGD = ("optimizer=sgd", *WIDTH)
CNN = ("model=cnn", "model.channels=[4,4,6,6]", "model.strides=[1,2,1,1]", f"train.steps={STEPS}", "optimizer=sgd")
PIPELINES = {
    "gpipe on 2": (2, ("schedule=gpipe",)),
    "gpipe on 3": (3, ("schedule=gpipe",)),
    "1f1b on 4": (4, ("schedule=1f1b",)),
    "interleaved1f1b on 2": (2, ("schedule=interleaved1f1b",)),
    "zbv on 2": (2, ("schedule=zbv",)),
}
Weights = dict[str, np.ndarray]
"""Parameters and buffers of all layers by their names in the network."""


class Losses:
    """A callback that keeps the losses at the top."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def should_log(self, n: int) -> bool:
        return True

    def on_step(self, block: int, n: int, metrics: dict[str, Tensor]) -> None:
        if metrics:
            self.losses[n] = float(metrics["loss"])

    def on_eval(self, block: int, n: int, split: str, figures: dict[str, float]) -> None:
        pass


def rank_weights(rank: int, size: int, store_path: str, config: TrainConfig) -> tuple[Weights, dict[int, float]]:
    """The layers that this rank has trained, and the losses if it has the top."""
    job = load_job(config, RankInfo(rank, size))
    comm = connect(dist.FileStore(store_path, size) if size > 1 else None, rank, size, timeout=config.engine.timeout)
    job = replace(job, cut=choose_partition(job))
    engine = build_engine(job)
    losses = Losses()
    engine.run(unrecorded(comm, losses))
    comm.all_gather(None, "the end")
    comm.close()
    assert job.cut is not None
    ends = list(accumulate(job.cut))
    owners = [engine.owners[sum(end <= layer for end in ends)] for layer in range(len(job.network))]
    mine = {
        name: value.numpy().copy()
        for name, value in job.network.state_dict().items()
        if owners[int(name.split(".")[0])] == rank
    }
    return mine, losses.losses


class Waits:
    """A callback that keeps the seconds of waiting so far, as it sees them at every batch."""

    def __init__(self) -> None:
        self.waits = WaitTimes()
        self.seen: list[float] = []

    def should_log(self, n: int) -> bool:
        return True

    def on_step(self, block: int, n: int, metrics: dict[str, Tensor]) -> None:
        self.seen.append(self.waits.receive)

    def on_eval(self, block: int, n: int, split: str, figures: dict[str, float]) -> None:
        pass


def rank_waits(rank: int, size: int, store_path: str) -> list[float]:
    """Seconds of waiting at every batch, where each forward pass of rank 0 takes 20 ms more."""
    job = load_job(load_config([*SMALL, *SGD, "algorithm=bp", "schedule=gpipe", "blocks=2"]), RankInfo(rank, size))
    if rank == 0:
        job.network[0].register_forward_pre_hook(lambda *_: time.sleep(0.02))
    comm = connect(dist.FileStore(store_path, size), rank, size, timeout=30)
    callback = Waits()
    build_engine(job).run(replace(unrecorded(comm, callback), waits=callback.waits))
    comm.all_gather(None, "the end")
    comm.close()
    return callback.seen


def trained(pool: Pool, ranks: int, *overrides: str) -> tuple[Weights, dict[int, float]]:
    """The whole network, put together from what every rank owns, and the losses."""
    results = pool.run(ranks, rank_weights, configuration(*SMALL, "algorithm=bp", *overrides))
    weights: Weights = {}
    for mine, _ in results:
        assert mine
        assert not mine.keys() & weights.keys(), "two ranks own a layer"
        weights |= mine
    return weights, {n: loss for _, losses in results for n, loss in losses.items()}


def prepared(*overrides: str) -> Job:
    return load_job(load_config([*SMALL, "algorithm=bp", *overrides]))


def plain(job: Job, parts: int = 1) -> tuple[Weights, dict[int, float]]:
    """Train the network of ``job`` in a loop, micro-batch after micro-batch, on the mean of their gradients."""
    network, losses = job.network, {}
    adamw = job.optimizer.name == "adamw"
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(network.parameters(), weight_decay=0.0, fused=True)
        if adamw
        else torch.optim.SGD(network.parameters(), momentum=0.9, fused=True)
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
def test_bp_on_one_process_with_other_models_and_optimizers(pool: Pool, overrides: tuple[str, ...]) -> None:
    assert_equal(trained(pool, 1, *overrides)[0], loop(1, *overrides)[0])


# Several


@pytest.mark.parametrize("name", PIPELINES)
def test_bp_on_a_pipeline_is_the_plain_loop(pool: Pool, name: str) -> None:
    ranks, schedule = PIPELINES[name]
    ours, losses = trained(pool, ranks, *SGD, *schedule)
    whole, in_parts = loop(1, *SGD), loop(4, *SGD)
    assert_equal(ours, in_parts[0])
    assert losses == pytest.approx(in_parts[1], rel=1e-6)
    assert distance(ours, whole[0]) < 1e-6
    assert losses == pytest.approx(whole[1], rel=1e-5)


def test_the_comparison_sees_a_single_update() -> None:
    other = loop(1, *SGD, f"train.steps={STEPS - 1}")
    assert distance(other[0], loop(1, *SGD)[0]) > 1e-4


@pytest.mark.parametrize("name", ["gpipe on 2", "1f1b on 4", "zbv on 2"])
def test_batch_norm_sees_micro_batches(pool: Pool, name: str) -> None:
    """Its own comparison: statistics are of micro-batches, which a loop over whole batches does not compute."""
    ranks, schedule = PIPELINES[name]
    ours, _ = trained(pool, ranks, *CNN, *schedule)
    in_parts, whole = ({key: value for key, value in loop(parts, *CNN)[0].items() if key in ours} for parts in (4, 1))
    assert_equal(ours, in_parts)
    weights = [key for key in ours if key.endswith("weight")]
    assert distance({key: ours[key] for key in weights}, {key: whole[key] for key in weights}) > 1e-2


@pytest.mark.parametrize("microbatches", [2, 8])
def test_any_number_of_micro_batches(pool: Pool, microbatches: int) -> None:
    ours, _ = trained(pool, 2, *SGD, "schedule=1f1b", f"train.microbatches={microbatches}")
    assert_equal(ours, loop(microbatches, *SGD)[0])
    assert distance(ours, loop(1, *SGD)[0]) < 1e-6


def test_uneven_stages(pool: Pool) -> None:
    ours, _ = trained(pool, 2, *SGD, "schedule=gpipe", "blocks=3")
    assert_equal(ours, loop(4, *SGD)[0])


def test_feedback_alignment_on_a_pipeline_is_the_plain_loop(pool: Pool) -> None:
    overrides = (*SGD, "algorithm=fa")
    alone, _ = trained(pool, 1, *overrides)
    expected, in_parts = prepared(*overrides), prepared(*overrides)
    for job in (expected, in_parts):
        FeedbackAlignment().convert(job.network, job.seed)
    assert_equal(alone, plain(expected)[0])
    several, _ = trained(pool, 2, *overrides, "schedule=1f1b")
    assert_equal(several, plain(in_parts, 4)[0])
    assert distance(several, alone) < 1e-6
    true = loop(1, *SGD)[0]
    layers = {name: value for name, value in alone.items() if "feedback" not in name}
    assert distance({name.replace(".layer.", "."): value for name, value in layers.items()}, true) > 1e-2


# Reports


@pytest.mark.parametrize(("ranks", "schedule"), [(1, "1f1b"), (2, "gpipe")])
def test_summary(pool: Pool, ranks: int, schedule: str) -> None:
    """Three epochs of digits; what is reached in the end is for the launch test."""
    summary = summary_of(
        pool, ranks, "algorithm=bp", f"schedule={schedule}", "train.steps=132", "train.evaluate_every=0"
    )
    assert {key: summary[key] for key in ("algorithm", "schedule", "ranks", "blocks", "steps")} == {
        "algorithm": "bp",
        "schedule": schedule,
        "ranks": ranks,
        "blocks": 4,
        "steps": 132,
    }
    assert summary["test_accuracy"] == summary["block_accuracy"][-1] > 0.95
    assert summary["block_accuracy"][:-1] == [None, None, None]
    assert len(summary["wait_fraction"]) == ranks
    assert all(0 < share < 1 for share in summary["wait_fraction"]) == (ranks > 1)
    assert summary["samples_per_second"] > 0
    assert len(summary["fingerprint"]) == 64
    assert summary["affiliated_parameters"] == 0
    job = load_job(load_config([*SMALL, "algorithm=bp"]))
    assert summary["effective_parameters"] == sum(p.numel() for p in job.network.parameters())


def test_callbacks_see_the_waits_of_their_own_batch(pool: Pool) -> None:
    """Rank 1 waits at least for the first of four micro-batches, in the first batch and in every other one."""
    start = time.perf_counter()
    _, seen = pool.run(2, rank_waits)
    seconds = time.perf_counter() - start
    assert len(seen) == STEPS
    assert seen[0] >= 0.02
    assert all(later >= earlier + 0.02 for earlier, later in pairwise(seen))
    assert seen[-1] < seconds


def test_the_accuracy_is_that_of_the_weights_in_the_end(pool: Pool) -> None:
    """Evaluation sends test batches of two sizes up through all stages."""
    job = prepared(*SGD)
    plain(job, 4)
    job.network.eval()
    with torch.no_grad():
        hits = sum(
            int((job.network(job.batches.evaluation_inputs(e)).argmax(1) == job.batches.evaluation_labels(e)).sum())
            for e in job.batches.test
        )
    for ranks, schedule in ((3, "1f1b"), (2, "zbv")):
        summary = summary_of(pool, ranks, "algorithm=bp", *SGD, f"schedule={schedule}")
        assert summary["test_accuracy"] == hits / len(job.batches.labels_of(job.batches.test))


def test_evaluation_and_placement_change_no_bit(pool: Pool) -> None:
    """Batch norm's statistics, too, are those of training batches alone."""
    prints = {
        summary_of(pool, ranks, "algorithm=bp", *CNN, f"schedule={name}", f"train.evaluate_every={every}")[
            "fingerprint"
        ]
        for ranks, name, every in ((2, "gpipe", 0), (2, "gpipe", 3), (2, "zbv", 3), (3, "1f1b", 7))
    }
    assert len(prints) == 1


# Faults

GONE_WITHIN = 10.0
CALL = 4 * 5
"""Call of a stage in batch 5, with four micro-batches."""


def _raise() -> None:
    raise RuntimeError("injected")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at(method: Callable[..., Any], call: int, fault: Callable[[], None]) -> Callable[..., Any]:
    calls = iter(range(10**9))

    def faulty(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            fault()
        return method(*args, **kwargs)

    return faulty


def faulty_rank(
    rank: int, size: int, store_path: str, config: TrainConfig, culprit: int, where: str, fault: Callable[[], None]
) -> None:
    if rank == culprit:
        owner: Any = pipelined._Stage if where.endswith("chunk") else pipelined.Pipeline
        setattr(owner, where, _at(getattr(owner, where), CALL if where.endswith("chunk") else 1, fault))
    try:
        train_rank(rank, size, store_path, config, 0.0, 0)
    except (BlockError, ChannelError) as error:
        exit_with_error(error)


def fail(ranks: int, schedule: str, culprit: int, where: str, fault: Callable[[], None]) -> list[Ended]:
    config = configuration(*SMALL, "algorithm=bp", f"schedule={schedule}", "train.steps=200")
    ended = run_fresh(ranks, faulty_rank, config, culprit, where, fault, timeout=45)
    times = [end.seconds for end in ended]
    assert max(times) - min(times) < GONE_WITHIN
    assert all(end.status != 0 for end in ended)
    for rank, end in enumerate(ended):
        if rank != culprit:
            line = end.stderr.strip().splitlines()[-1]
            assert re.match(rf"error: rank {rank}: (schedule {schedule}: batch \d+: |lost a rank)", line), line
    return ended


@pytest.mark.parametrize("culprit", [0, 2])
def test_an_exception_in_a_stage_ends_every_process(culprit: int) -> None:
    ended = fail(3, "1f1b", culprit, "forward_one_chunk", _raise)
    line = ended[culprit].stderr.strip().splitlines()[-1]
    assert line == f"error: rank {culprit}: schedule 1f1b: batch 5: RuntimeError: injected"
    assert "Traceback" in ended[culprit].stderr


@pytest.mark.parametrize(
    ("schedule", "culprit", "where"),
    [("gpipe", 0, "backward_one_chunk"), ("zbv", 0, "forward_one_chunk"), ("1f1b", 1, "_evaluate")],
)
def test_a_killed_rank_ends_every_process(schedule: str, culprit: int, where: str) -> None:
    ended = fail(2, schedule, culprit, where, _kill)
    assert ended[culprit].status == -signal.SIGKILL


def test_a_killed_rank_in_the_middle_ends_every_process() -> None:
    assert fail(3, "gpipe", 1, "forward_one_chunk", _kill)[1].status == -signal.SIGKILL


# Refusals


@pytest.mark.parametrize(
    ("ranks", "overrides", "message"),
    [
        (1, "algorithm=bll schedule=gpipe", "schedule=gpipe: algorithm=bll learns locally, allowed are auto, free"),
        (2, "algorithm=al schedule=1f1b", "schedule=1f1b: algorithm=al learns locally, allowed are auto, free"),
        (2, "algorithm=predsim schedule=zbv", "schedule=zbv: algorithm=predsim learns locally"),
        (1, "algorithm=bp schedule=free", "schedule=free: algorithm=bp has a backward lock, allowed are auto"),
        (2, "algorithm=fa schedule=free", "schedule=free: algorithm=fa has a backward lock, allowed are auto"),
        (2, "train.microbatches=5", "train.microbatches=5: must divide train.batch_size=32"),
        (4, "train.microbatches=2", "train.microbatches=2: schedule=1f1b needs at least one for each of ranks=4"),
        (2, "schedule=interleaved1f1b blocks=3", "blocks=3 must be a multiple of ranks=2, and more"),
        (2, "schedule=interleaved1f1b blocks=2", "blocks=2 must be a multiple of ranks=2, and more"),
        (2, "schedule=interleaved1f1b train.microbatches=1", "train.microbatches=1 must be a multiple of ranks"),
        (2, "schedule=zbv blocks=2", "schedule=zbv: blocks=2 must be 4, two for each rank"),
        (2, "schedule=zbv blocks=5", "schedule=zbv: blocks=5 must be 4, two for each rank"),
        (2, "schedule=zbv train.microbatches=2", "train.microbatches=2 must be at least 4"),
        (
            1,
            "algorithm=bll schedule=pipedream",
            "schedule=pipedream: algorithm=bll learns locally, allowed are auto, free",
        ),
        (2, "algorithm=fa schedule=pipedream", "schedule=pipedream: is for algorithm=bp, algorithm=fa runs with gpipe"),
        (2, "schedule=pipedream replicas=2", "replicas=2: allowed for algorithm=bp is 1, replicas are of local rules"),
        (1, "schedule=pipedream train.accumulate=2", "train.accumulate=2: allowed for algorithm=bp is 1"),
    ],
)
def test_wrong_combinations_are_refused_in_one_line(ranks: int, overrides: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        load_job(load_config([*SMALL, "algorithm=bp", *overrides.split()]), RankInfo(0, ranks))
    assert "\n" not in str(refusal.value)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^schedule=fast: allowed are .*gpipe, 1f1b"):
        load_config([*SMALL, "algorithm=bp", "schedule=fast"])
