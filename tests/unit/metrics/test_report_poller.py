import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.metrics.block_metrics import BlockMetrics, ReportPoller, RowAssembler, StepMetrics

# Blocks of every rank, bottom to top.
PLACEMENTS = [[[1, 2, 3, 4]], [[1, 2], [3, 4]], [[1], [2, 3], [4]], [[1], [2], [3], [4]]]
# Reports of every block, in order.
EVENTS = [("train", 0), ("train", 4), ("test", 4), ("train", 8), ("train", 9), ("test", 9)]


def record(event: str, n: int, block: int, rank: int = 0) -> BlockMetrics:
    return BlockMetrics(event, n, block, rank, {"accuracy": block / 8, "loss": n + block / 8}, float(n), 0.0)


def reports(placement: list[list[int]]) -> list[list[BlockMetrics]]:
    return [
        [record(event, n, block, rank) for event, n in EVENTS for block in blocks]
        for rank, blocks in enumerate(placement)
    ]


def total_loss(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {"total": sum(block["loss"] for block in metrics), "top": metrics[-1]["accuracy"]}


def collect(
    placement: list[list[int]], fetch: Callable[[int, int], BlockMetrics | None], sink: Callable[[StepMetrics], None]
) -> ReportPoller[BlockMetrics]:
    return ReportPoller(len(placement), fetch, RowAssembler(4, total_loss, sink).add)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(PLACEMENTS), st.integers(0, 2**32 - 1))
def test_records_that_come_in_any_order_make_rows_in_order(placement: list[list[int]], seed: int) -> None:
    posted, shown, draw = reports(placement), [0] * len(placement), random.Random(seed)
    ranks_that_report = [rank for rank, records in enumerate(posted) for _ in records]
    draw.shuffle(ranks_that_report)

    def fetch(rank: int, i: int) -> BlockMetrics | None:
        """At every poll, a random number of new records has arrived."""
        for _ in range(draw.choice([0, 0, 1, 2, 6])):
            if ranks_that_report:
                shown[ranks_that_report.pop()] += 1
        assert i < len(posted[rank]) + 1
        return posted[rank][i] if i < shown[rank] else None

    rows: list[StepMetrics] = []
    collect(placement, fetch, rows.append).finish([len(records) for records in posted], timeout=30)

    assert [(row.event, row.n) for row in rows] == EVENTS
    for row in rows:
        assert [r.block for r in row.records] == [1, 2, 3, 4]
        assert [r.rank for r in row.records] == [rank for rank, blocks in enumerate(placement) for _ in blocks]
        assert {(r.event, r.n) for r in row.records} == {(row.event, row.n)}
        expected = {"total": 4 * row.n + 10 / 8, "top": 0.5} if row.event == "train" else {}
        assert row.system == expected


def test_rows_come_while_the_ranks_still_run() -> None:
    came = threading.Event()
    posted = reports([[1, 2, 3, 4]])[0]
    poller = collect([[1, 2, 3, 4]], lambda _, i: posted[i] if i < 4 else None, lambda _: came.set())
    assert came.wait(5), "a row is shown before finish()"
    with pytest.raises(TimeoutError):
        poller.finish([len(posted)], timeout=0.05)


def test_the_end_waits_neither_for_the_next_look_nor_for_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counterflow.metrics.block_metrics._INTERVAL", 30.0)
    posted = reports(PLACEMENTS[1])
    poller = collect(PLACEMENTS[1], lambda r, i: posted[r][i] if i < len(posted[r]) else None, lambda _: None)
    start = time.monotonic()
    poller.finish([len(records) for records in posted], timeout=60)
    assert time.monotonic() - start < 5


def test_without_records_there_is_nothing_to_wait_for() -> None:
    collect([[1, 2, 3, 4]], lambda *_: None, lambda _: None).finish([0], timeout=60)


def test_missing_records_end_in_a_timeout_that_says_how_many() -> None:
    posted = reports(PLACEMENTS[1])
    poller = collect(PLACEMENTS[1], lambda r, i: posted[r][i] if i < 5 - r else None, lambda _: None)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^\[5, 4\] of \[12, 12\] records per rank came within 0\.2 s$"):
        poller.finish([12, 12], timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 5


def test_waiting_for_the_last_records_leaves_the_core_to_others() -> None:
    """Other ranks may share it; a poll every 10 ms is enough."""
    polls = 0

    def fetch(rank: int, i: int) -> None:
        nonlocal polls
        polls += 1

    poller = collect([[1, 2, 3, 4]], fetch, lambda _: None)
    with pytest.raises(TimeoutError):
        poller.finish([1], timeout=0.3)
    assert 2 <= polls <= 60


def test_what_fails_in_the_sink_surfaces_at_the_end() -> None:
    posted = reports([[1, 2, 3, 4]])[0]

    def sink(row: StepMetrics) -> None:
        raise OSError("no space left on device")

    poller = collect([[1, 2, 3, 4]], lambda _, i: posted[i], sink)
    start = time.monotonic()
    with pytest.raises(OSError, match="no space left on device"):
        poller.finish([len(posted)], timeout=60)
    assert time.monotonic() - start < 5


def test_what_fails_on_the_way_surfaces_at_the_end() -> None:
    def fetch(rank: int, i: int) -> BlockMetrics | None:
        raise ConnectionError("the store is gone")

    poller = collect([[1, 2, 3, 4]], fetch, lambda _: None)
    with pytest.raises(ConnectionError, match="the store is gone"):
        poller.finish([1], timeout=60)


def test_what_fails_is_raised_before_the_end_to_those_who_ask() -> None:
    def sink(row: StepMetrics) -> None:
        raise OSError("no space left on device")

    posted = reports([[1, 2, 3, 4]])[0]
    poller = collect([[1, 2, 3, 4]], lambda _, i: posted[i] if i < 4 else None, sink)
    poller._thread.join(5)
    with pytest.raises(OSError, match="no space left on device"):
        poller.check()


def test_its_thread_ends_when_it_is_closed() -> None:
    poller = collect([[1, 2, 3, 4]], lambda *_: None, lambda _: None)
    poller.close()
    assert not poller._thread.is_alive()
