"""A failing process ends every process within 10 s, with a line that names rank, block or edge, and batch."""

import math
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from counterflow.algorithms.bll import BLLRule
from counterflow.cli.errors import exit_with_error
from counterflow.config import TrainConfig
from counterflow.engine.run_context import BlockError
from counterflow.transport import ChannelError
from tests.helpers.processes import Ended, run_fresh
from tests.helpers.runs import SMALL, configuration, train_rank

RANKS = 3
"""One at each end, and one that has two neighbours."""
BATCH = 5
COUNTED = 2
"""Times that a rule learns before the first batch, on copies, for its FLOPs to be counted."""
GONE_WITHIN = 10.0
MESSAGE = r"(activation of batch|target of batch|test batch \d+ after batch) \d+"


def _raise(*_: Any) -> None:
    raise RuntimeError("injected")


def _kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at(method: Callable[..., Any], call: int, fault: Callable[..., None]) -> Callable[..., Any]:
    """``method``, which fails when it is called for the time ``call``, counted from 0."""
    calls = iter(range(10**9))

    def faulty(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            fault()
        return method(*args, **kwargs)

    return faulty


def _nan(method: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = iter(range(10**9))

    def faulty(*args: Any) -> Any:
        metrics = method(*args)
        return {**metrics, "loss": torch.tensor(math.nan)} if next(calls) == call else metrics

    return faulty


def _inject(where: str, fault: Callable[..., None]) -> None:
    match where:
        case "forward":
            BLLRule.forward_message = _at(BLLRule.forward_message, COUNTED + BATCH, fault)  # type: ignore[method-assign]
        case "loss":
            BLLRule.update = _at(BLLRule.update, COUNTED + BATCH, fault)  # type: ignore[method-assign]
        case "send":
            dist.isend = _at(dist.isend, BATCH, fault)
        case "receive":
            dist.irecv = _at(dist.irecv, BATCH + 3, fault)  # some are posted ahead
        case "nan":
            BLLRule.update = _nan(BLLRule.update, COUNTED + BATCH)  # type: ignore[method-assign]


def faulty_rank(
    rank: int, size: int, store_path: str, config: TrainConfig, culprit: int, where: str, fault: Callable[..., None]
) -> None:
    if rank == culprit:
        _inject(where, fault)
    try:
        train_rank(rank, size, store_path, config, 0.0, 0)
    except (BlockError, ChannelError) as error:
        exit_with_error(error)


def fail(culprit: int, where: str, fault: Callable[..., None]) -> list[Ended]:
    ended = run_fresh(
        RANKS,
        faulty_rank,
        configuration(*SMALL, f"blocks={RANKS}", "train.steps=200"),
        culprit,
        where,
        fault,
        timeout=45,
    )
    times = [end.seconds for end in ended]
    assert max(times) - min(times) < GONE_WITHIN
    assert all(end.status != 0 for end in ended)
    return ended


def last_line(end: Ended) -> str:
    return end.stderr.strip().splitlines()[-1]


def neighbours(rank: int) -> list[int]:
    return [r for r in (rank - 1, rank + 1) if 0 <= r < RANKS]


def assert_neighbours_name(ended: list[Ended], culprit: int) -> None:
    for rank in neighbours(culprit):
        line = last_line(ended[rank])
        assert re.match(
            rf"error: rank {rank}: (activation|target) edge \d->\d with rank {culprit}: "
            rf"{MESSAGE}: lost rank {culprit} \([^.]+( \[127.0.0.1\]:\d+.*)?\)$",
            line,
        ), line


@pytest.mark.parametrize(
    ("where", "culprit"), [("forward", 0), ("forward", 1), ("forward", 2), ("loss", 0), ("loss", 2)]
)
def test_an_exception_in_a_block(where: str, culprit: int) -> None:
    ended = fail(culprit, where, _raise)
    action = {"forward": "forward", "loss": "learn"}[where]
    assert last_line(ended[culprit]) == (
        f"error: rank {culprit}: block {culprit + 1}: {action} of batch {BATCH}: RuntimeError: injected"
    )
    assert "Traceback" in ended[culprit].stderr
    assert_neighbours_name(ended, culprit)


@pytest.mark.parametrize("culprit", range(RANKS))
@pytest.mark.parametrize("where", ["send", "receive"])
def test_an_exception_in_a_channel(culprit: int, where: str) -> None:
    ended = fail(culprit, where, _raise)
    line = last_line(ended[culprit])
    assert re.match(
        rf"error: rank {culprit}: (activation|target) edge \d->\d with rank \d: {MESSAGE}: .*injected", line
    ), line
    for rank in neighbours(culprit):
        assert re.match(
            rf"error: rank {rank}: \w+ edge \d->\d with rank \d: {MESSAGE}: lost rank", last_line(ended[rank])
        )


@pytest.mark.parametrize("culprit", range(RANKS))
@pytest.mark.parametrize("where", ["forward", "send", "receive"])
def test_a_killed_rank(culprit: int, where: str) -> None:
    ended = fail(culprit, where, _kill)
    assert ended[culprit].status == -signal.SIGKILL
    assert_neighbours_name(ended, culprit)


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_loss_that_is_not_finite_names_block_and_batch(culprit: int) -> None:
    ended = fail(culprit, "nan", _raise)
    expected = (
        f"error: rank {culprit}: block {culprit + 1}: learn of batch {BATCH}: FloatingPointError: the loss is nan"
    )
    assert ended[culprit].stderr.strip().splitlines()[-1] == expected
    assert "Traceback" not in ended[culprit].stderr
