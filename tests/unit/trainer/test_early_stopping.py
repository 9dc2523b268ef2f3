"""Early stopping: the decision by hand, and when a rank has to wait for it."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterflow.schedule import RunPlan
from counterflow.topology import Edge, Stream, Topology
from counterflow.trainer.early_stopping import EarlyEnd, Patience, is_exhausted


@pytest.mark.parametrize(
    ("scores", "patience", "exhausted"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.5], 1, True),  # an equal one is no progress
        ([0.5, 0.4, 0.6], 1, True),  # it was exhausted before
        ([0.5, 0.4, 0.6], 2, False),
        ([0.5, 0.4, 0.45], 2, True),  # nor is one that is higher than the last
        ([0.5, 0.4, 0.45, 0.6, 0.1], 3, False),
    ],
)
def test_decisions_by_hand(scores: list[float], patience: int, exhausted: bool) -> None:
    assert is_exhausted(dict(zip(range(4, 100, 4), scores, strict=False)), patience) is exhausted


class Published:
    """Takes the place of a communicator."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.awaited: list[str] = []

    def publish(self, key: str, text: str) -> None:
        self.texts[key] = text

    def await_published(self, key: str, check: object) -> str:
        self.awaited.append(key)
        return self.texts[key]


def end(comm: Published, blocks: int = 3, lag: int = 2, every: int = 4, depth: int = 2) -> Any:
    job = SimpleNamespace(
        plan=RunPlan(100, lag, evaluate_every=every), topology=Topology(blocks, 1), depth=depth, target_depth=None
    )
    return EarlyEnd(job, comm, lambda: None)  # type: ignore[arg-type]


def test_the_end_comes_some_batches_after_the_decision() -> None:
    """Notice: 2 blocks below the top, lag 2; 2 messages posted ahead; one that is held, and the evaluation itself."""
    comm = Published()
    patience = Patience(2, {}, comm)  # type: ignore[arg-type]
    for batches, score in ((4, 0.5), (8, 0.4), (12, 0.3)):
        patience.add_score(batches, score)
    reached = end(comm).is_reached
    assert [n for n in range(21) if reached(n)] == [19, 20]
    assert len(comm.awaited) == 3, "every decision is awaited once"


def test_decisions_of_earlier_evaluations_are_there_at_the_start() -> None:
    comm = Published()
    Patience(1, {8: 0.4, 4: 0.5}, comm)  # type: ignore[arg-type]
    assert list(comm.texts.values()) == ["False", "True"]


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(0, 30))
def test_no_stream_names_a_batch_beyond_the_end(blocks: int, lag: int, every: int, start: int) -> None:
    """A plan that evaluations end after 40 batches is one of 40 batches, wherever the run goes on."""
    early = RunPlan(100, lag, every, test_batches=2, validation_batches=1, start=start, decided_by=lambda n: n >= 39)
    short = RunPlan(40, lag, every, test_batches=2, validation_batches=1, start=start)
    edges = [Edge(stream, k) for stream in Stream for k in range(1, blocks)]
    assert [list(early.messages(edge)) for edge in edges] == [list(short.messages(edge)) for edge in edges]
    assert [early.taken(k) for k in range(1, blocks + 1)] == [short.taken(k) for k in range(1, blocks + 1)]


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 7), st.integers(1, 4))
def test_no_rank_waits_for_an_evaluation_that_it_holds_up(blocks: int, lag: int, every: int, depth: int) -> None:
    """When a block posts the receive that is furthest ahead, it has finished the batch of the evaluation it needs."""
    comm = Published()
    comm.texts = {f"the decision after {n} batches": "False" for n in range(1, 200)}
    early_end = end(comm, blocks, lag, every, depth)
    plan = RunPlan(100, lag, every)
    for n in range(60):
        comm.awaited.clear()
        for block in range(1, blocks + 1):
            early_end.is_reached(n + plan.lead(block) + lag + 1)  # of a target: the lag, and one more that is held
        early_end.is_reached(n + depth + 1)
        assert all(int(key.split()[3]) <= n for key in comm.awaited), "those before batch n"
