"""``engine.wire=int8``: the same bits on any number of processes and over restarts, and a quarter of the bytes."""

import os
import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from counterflow.algorithms.bll import BLLRule
from counterflow.config import TrainConfig
from counterflow.engine.run_context import BlockError
from counterflow.message import MessageKind, unpack_header
from counterflow.transport import ChannelError
from tests.distributed.engine.test_resume import check
from tests.helpers.elastic import Elastic, children
from tests.helpers.kills import JOB, LIMIT, RANKS, fingerprint, unbroken_run, until_checkpoint
from tests.helpers.processes import Pool, run_fresh
from tests.helpers.runs import SMALL, configuration, summary_of, train_rank

INT8 = ("engine.wire=int8",)
MODEL = ("blocks=3", "model.width=128", "model.hidden=4", "model.norm=batch", "model.dropout=0.1")
RULES = {
    "bll": ("algorithm=bll", "algorithm.feedback.refresh=2"),
    "predsim": ("algorithm=predsim",),
    "al": ("algorithm=al", "algorithm.dim=128"),
    "naive": ("algorithm=bp", "schedule=naive"),
}


@pytest.mark.parametrize("rule", RULES)
def test_processes_change_nothing(pool: Pool, rule: str) -> None:
    options = (*MODEL, *RULES[rule])
    alone, *several = (summary_of(pool, ranks, *options, *INT8) for ranks in (1, 2, 3))
    for key in ("fingerprint", "block_accuracy", "bytes_per_batch"):
        assert [summary[key] for summary in several] == [alone[key]] * 2
    exact = summary_of(pool, 1, *options)
    assert alone["fingerprint"] != exact["fingerprint"]
    for way in ("up", "down") if rule == "naive" else ("up",):
        pairs = zip(alone["bytes_per_batch"][way], exact["bytes_per_batch"][way], strict=True)
        assert all(small <= 0.27 * large for small, large in pairs)


@pytest.mark.parametrize("rule", ["bll", "al", "naive"])
def test_processes_change_nothing_in_sequences(pool: Pool, rule: str) -> None:
    size = ("model.width=16", "model.layers=2", "model.heads=2", "model.hidden=24", "data.limit=64", "train.steps=5")
    options = ("model=transformer", "data=reverse", "blocks=3", "train.evaluate_every=0", *size, *RULES[rule], *INT8)
    alone, three = (summary_of(pool, ranks, *options) for ranks in (1, 3))
    assert three["fingerprint"] == alone["fingerprint"]
    assert three["block_accuracy"] == alone["block_accuracy"]


@pytest.mark.parametrize("rule", RULES)
def test_resumed_with_another_number_of_processes_the_bits_are_the_same(pool: Pool, tmp_path: Path, rule: str) -> None:
    check(pool, tmp_path, 3, 2, 8, *RULES[rule], *INT8)


BATCHES = 10
"""Those after which nothing is evaluated."""


def counted_rank(rank: int, size: int, store_path: str, config: TrainConfig) -> tuple[dict[str, Any], Counter[str]]:
    """The summary, and the bytes that this rank gave to gloo for the first `BATCHES` training batches, by kind."""
    sent: Counter[str] = Counter()
    send = dist.isend

    def counted(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        tag, _ = unpack_header(bytes(tensor[:64].view(torch.uint8).numpy()))
        if tag.n < BATCHES:
            sent[tag.kind.name] += tensor.nbytes
        return send(tensor, *arguments, **named)

    dist.isend = counted
    try:
        return train_rank(rank, size, store_path, config, 0.0, 0), sent
    finally:
        dist.isend = send


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("rule", RULES)
def test_the_summary_has_the_bytes_that_an_edge_carried(pool: Pool, rule: str, wire: str) -> None:
    options = ("train.evaluate_every=0", "train.steps=12", f"engine.wire={wire}")
    results = pool.run(3, counted_rank, configuration(*SMALL, *MODEL, *RULES[rule], *options))
    expected = results[0][0]["bytes_per_batch"]
    down = MessageKind.GRADIENT if rule == "naive" else MessageKind.TARGET
    for edge, (lower, upper) in enumerate(pairwise(results)):
        assert lower[1]["ACTIVATION"] == BATCHES * expected["up"][edge] > 0
        assert upper[1][down.name] == BATCHES * expected["down"][edge]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved1f1b", "zbv"])
def test_pipelines_of_torch_learn_over_it(pool: Pool, schedule: str) -> None:
    """Their messages are bytes in float32 tensors, which must arrive as they left."""
    options = ("algorithm=bp", f"schedule={schedule}", "blocks=4", "model.width=64", "model.hidden=6", "train.steps=60")
    found = [summary_of(pool, 2, *options, *wire)["test_accuracy"] for wire in ((), INT8)]
    assert found[0] > 0.8
    assert found[1] == pytest.approx(found[0], abs=0.03)


def not_finite_rank(rank: int, size: int, store_path: str, config: TrainConfig, value: float) -> None:
    """A rank whose block sends one number that is not finite in batch 5, after which its own loss is finite."""
    if rank == 0:
        forward = BLLRule.forward_message
        calls = iter(range(10**9))

        def faulty(self: BLLRule, message: Any) -> Any:
            a, u = forward(self, message)
            if next(calls) == COUNTED + 5:
                a = a.clone()
                a[3, 7] = value
            return a, u

        BLLRule.forward_message = faulty  # type: ignore[method-assign]
    try:
        train_rank(rank, size, store_path, config, 0.0, 0)
    except BlockError as error:
        print(error)
    except ChannelError:
        pass


COUNTED = 2
"""Forward passes of a block that count its FLOPs, before the first batch."""


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_ends_the_run_in_the_block_above(value: float) -> None:
    config = configuration(*SMALL, *MODEL, "blocks=2", *INT8)
    ended = run_fresh(2, not_finite_rank, config, value, timeout=45)
    text = "rank 1: block 2: learn of batch 5: FloatingPointError: the loss is nan"
    assert text in ended[1].stdout + ended[1].stderr


def test_a_replaced_rank_gets_packed_messages_again(tmp_path: Path) -> None:
    options = (*JOB, *INT8)
    expected, _ = unbroken_run(tmp_path, "whole", *options, ranks=1)
    run = tmp_path / "run"
    job = Elastic.start(RANKS, tmp_path / "log", *options, "engine.recovery=rank", f"run.dir={run}", restarts=1)
    until_checkpoint(job, run)
    os.kill(children(job.workers()[1])[0], signal.SIGKILL)
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == expected
    assert "begins anew while the others wait" in job.output()
