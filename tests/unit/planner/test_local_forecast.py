"""Simulated replicas and parts, against what follows from their times by hand, and against the plain simulator."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.planner.local_forecast import LocalRun, bucket_count, local_forecast
from counterflow.schedule import Action, Op
from counterflow.schedule.forecast import LinkSpec, StageCost, Workload, forecast
from counterflow.topology import Edge, Stream, Topology

STAGE = StageCost(forward=1.0, backward=2.0, update=0.5, target=0.25)
MB = 1 << 20


def work(blocks: int, up: int = 0, down: int = 1) -> Workload:
    return Workload([STAGE] * blocks, [up] * (blocks - 1), [down] * (blocks - 1))


def seconds(topology: Topology, local: LocalRun, batches: int = 60, up: int = 0, **options: Any) -> float:
    return local_forecast(topology, work(topology.blocks, up), local, batches=batches, **options).seconds_per_batch


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_one_pipeline_in_whole_batches_is_the_plain_simulation(data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, 5))
    ranks = data.draw(st.integers(1, blocks))
    time = st.floats(0.1, 3.0)
    stages = [StageCost(data.draw(time), data.draw(time), 0.1, data.draw(time)) for _ in range(blocks)]
    sizes = [data.draw(st.integers(1, 9)) for _ in range(blocks - 1)]
    workload = Workload(stages, sizes, sizes if data.draw(st.booleans()) else ())
    lag, depth, batches = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), data.draw(st.integers(2, 30))
    link = LinkSpec(data.draw(st.floats(0, 2)), data.draw(st.floats(1, 100)))
    expected = forecast("free", workload, ranks=ranks, batches=batches, lag=lag, depth=depth, link=link, overhead=0.01)
    local = LocalRun(lag=lag, depth=depth)
    found = local_forecast(
        Topology(blocks, ranks), workload, local, batches=batches, link_of=lambda edge: link, overhead=0.01
    )
    assert found == expected


@pytest.mark.parametrize("inner", ["pipeline", "replicas"])
@pytest.mark.parametrize("gradients", [True, False])
def test_meetings_over_free_links_cost_nothing(inner: str, gradients: bool) -> None:
    local = LocalRun(gradients=gradients)
    assert seconds(Topology(3, 6, 2, inner), local) == pytest.approx(3.75)


def test_one_process_has_all_pieces_to_itself() -> None:
    assert seconds(Topology(2, 1, 3), LocalRun()) == pytest.approx(6 * 3.75)
    assert seconds(Topology(2, 2, 3, "replicas"), LocalRun()) == pytest.approx(3 * 3.75)


def test_a_pipeline_across_processes_waits_between_its_meetings() -> None:
    """One process has blocks 1 and 2 of the first replica and 1 of the second, the other one has the rest: each begins
    with block 1, and block 2 of the second replica, which the other takes next, comes a forward pass too late."""
    assert seconds(Topology(2, 2, 3), LocalRun()) == pytest.approx(3 * 3.75 + 1.0)


def test_gradients_wait_for_two_messages_and_the_update_comes_after_them() -> None:
    """Slice and sum: twice latency and sending time. Both directions have links of their own."""
    link = LinkSpec(latency=0.5, bandwidth=10.0)
    options: dict[str, Any] = {"vectors": [20], "link_of": lambda edge: link}
    topology = Topology(1, 2, 2)
    assert seconds(topology, LocalRun(), **options) == pytest.approx(3.75 + 2 * (0.5 + 10 / 10.0))
    order: list[tuple[str, float, float]] = []

    def record(rank: int, action: Action, start: float, end: float) -> None:
        if rank == 0 and action.n == 0:
            order.append((action.op.value, start, end))

    local_forecast(topology, work(1), LocalRun(), batches=4, record=record, **options)
    assert order == [
        ("T", 0, 0.25), ("F", 0.25, 1.25), ("L", 1.25, 3.25), ("X", 3.25, 3.25), ("Y", 4.75, 4.75), ("G", 6.25, 6.75)
    ]  # fmt: skip


def test_parameters_that_travel_while_batches_train_cost_nothing() -> None:
    """A message of two and a half batches: a delay of six is enough for two of them, and none is not."""
    link = LinkSpec(latency=2.5 * 3.75)
    options: dict[str, Any] = {"vectors": [8] * 2, "link_of": lambda edge: link if edge.stream is Stream.SYNC else FREE}
    topology = Topology(2, 4, 2)
    local = LocalRun(gradients=False, every=10, delay=6)
    assert seconds(topology, local, 80, **options) == pytest.approx(3.75)
    assert seconds(topology, replace(local, delay=0), 80, **options) == pytest.approx(3.75 * 1.5)
    assert seconds(topology, replace(local, delay=2), 80, **options) == pytest.approx(3.75 * 1.3)


FREE = LinkSpec()


def test_large_gradients_leave_during_the_backward_pass() -> None:
    """Four messages of a quarter: three of them leave before the backward pass ends, in its quarters."""
    link = LinkSpec(bandwidth=32 * MB / 4)  # a slice of one of two replicas takes 2 s, as the backward pass
    assert bucket_count(32 * MB) == 8
    assert bucket_count(5) == 1
    options: dict[str, Any] = {"link_of": lambda edge: link}
    whole = seconds(Topology(1, 2, 2), LocalRun(), vectors=[32 * MB], **options)
    late = 3.75 + 2 * 2.0  # if all left at the end
    assert 3.75 < whole < late - 1.0


def test_parts_fill_the_pipeline_sooner_and_hold_less() -> None:
    whole = local_forecast(Topology(4, 4), work(4), LocalRun(), batches=40)
    parts = local_forecast(Topology(4, 4), work(4), LocalRun(parts=4), batches=40)
    assert parts.seconds_per_batch == pytest.approx(whole.seconds_per_batch) == pytest.approx(3.75)
    assert whole.in_flight == [1.0] * 4
    assert parts.in_flight == [0.25] * 4
    assert whole.buffered == [2.0, 5.0, 5.0, 3.0]
    assert parts.buffered == [0.5, 1.25, 1.25, 0.75]
    assert parts.fill < whole.fill


def test_overhead_is_paid_for_every_part() -> None:
    """Two actions a part, and one for the target."""
    assert seconds(Topology(2, 2), LocalRun(parts=4), overhead=0.01) == pytest.approx(3.75 + 9 * 0.01)


def test_every_learning_is_recorded_once_for_each_part() -> None:
    found: Counter[Action] = Counter()

    def record(rank: int, action: Action, start: float, end: float) -> None:
        found[action] += action.op is Op.LEARN

    local_forecast(Topology(2, 2, 2), work(2), LocalRun(parts=2), batches=4, record=record)
    assert found.total() == 4 * 2 * 2 * 2
    assert set(found.values()) == {0, 1}


def test_links_differ_by_edge() -> None:
    slow = LinkSpec(bandwidth=2.0)

    def link_of(edge: Edge) -> LinkSpec:
        return slow if edge.stream is Stream.ACTIVATION and edge.lower == 2 else FREE

    assert seconds(Topology(4, 4), LocalRun(), up=10, link_of=link_of) == pytest.approx(5.0)
    assert seconds(Topology(4, 4), LocalRun(), up=10, link_of=lambda edge: FREE) == pytest.approx(3.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lag": -1}, "lag=-1: must be at least 0"),
        ({"depth": 0}, "depth=0: must be at least 1"),
        ({"parts": 0}, "parts=0: must be at least 1"),
        ({"gradients": False, "every": 2, "delay": 2}, "delay=2: must be less than every=2"),
        ({"every": 2}, "every=2: allowed for meetings with gradients is 1"),
    ],
)
def test_runs_that_there_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        LocalRun(**options)
    assert str(error.value) == message


def test_arguments_that_do_not_fit_together() -> None:
    with pytest.raises(ValueError, match="lag=0: must be at least 1 on ranks=2"):
        seconds(Topology(2, 2), LocalRun(lag=0))
    with pytest.raises(ValueError, match="one size for each of blocks=2, or none"):
        seconds(Topology(2, 2), LocalRun(), vectors=[1])
    with pytest.raises(ValueError, match="batches=1: must be at least 2"):
        seconds(Topology(2, 2), LocalRun(), batches=1)
