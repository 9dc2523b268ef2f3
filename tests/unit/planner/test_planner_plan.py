"""A plan is a function of times and machines, and follows from what they are."""

import re
from dataclasses import replace

import pytest

from counterflow.planner.network import Head, Layer, Network
from counterflow.planner.plan import RunPlan, StepMetrics
from tests.helpers.made_up import link, network, planned


def row(found: RunPlan, blocks: int) -> StepMetrics:
    return next(row for row in found.rows if row.blocks == blocks)


def test_the_same_times_give_the_same_plan() -> None:
    layers = network([1, 2, 1, 3, 1, 1])
    machines = {"jitter_share": 0.2, "jitter_factor": 3.0, "link": link(0.5)}
    assert planned(layers, 4, **machines) == planned(layers, 4, **machines)


def test_cuts_are_even_and_the_rate_is_that_of_the_slowest_block() -> None:
    found = planned(network([1, 2, 1, 3, 1, 1], batch=60), 3)
    assert [r.cut for r in found.rows] == [[6], [3, 3], [2, 2, 2]]
    assert [r.seconds_per_batch for r in found.rows] == [pytest.approx(slowest) for slowest in (9, 5, 4)]
    for r in found.rows:
        assert r.samples_per_second == pytest.approx(60 / r.seconds_per_batch)
        assert r.speed_up == pytest.approx(9 / r.seconds_per_batch)


def test_a_head_moves_the_cut() -> None:
    plain = network([1, 1, 1, 1, 1, 1])
    dear = replace(plain.layers[2], head=Head(learn=3.0))
    layers = [*plain.layers[:2], dear, *plain.layers[3:]]
    assert row(planned(plain, 2), 2).cut == [3, 3]
    assert row(planned(Network(layers, 64), 2), 2).cut in ([4, 2], [2, 4])  # 4 | 5 as 5 | 4 before it, and not 6 | 3


@pytest.mark.parametrize(("latency", "lag"), [(0, 2), (0.25, 2), (0.5, 2), (1, 3), (2, 5)])
def test_the_lag_is_what_the_link_needs(latency: float, lag: int) -> None:
    """The design's table: at a latency of one batch time lag 2 is 16 % slower than lag 3; of two, lag 4 is by 8 %."""
    eight = row(planned(network([1.0] * 8), 8, link=link(latency)), 8)
    assert eight.lag == lag
    assert eight.seconds_per_batch == pytest.approx(1.0, rel=0.02)


def test_the_lag_is_never_below_the_one_that_is_wanted() -> None:
    assert row(planned(network([1.0] * 4), 4, lag=6), 4).lag == 6


def test_a_long_link_is_looked_at_to_its_end() -> None:
    """Thirty batch times: every lag on the way there is a little faster than the one before."""
    four = row(planned(network([1.0] * 4), 4, link=link(30.0)), 4)
    assert four.seconds_per_batch == pytest.approx(1.0, rel=0.02)
    assert 30 < four.lag < 80


def test_a_narrow_link_prefers_small_activations() -> None:
    sizes = [100, 100, 100, 10, 100, 0]
    layers = network([1.0] * 6, up=sizes)
    assert row(planned(layers, 2), 2).cut == [3, 3]
    narrow = row(planned(layers, 2, link=link(bandwidth=20.0)), 2)
    assert narrow.cut == [4, 2]
    assert narrow.seconds_per_batch == pytest.approx(4.0, rel=0.01)
    assert narrow.up == pytest.approx(10 / 4.0, rel=0.01)


def test_a_link_that_nothing_helps_is_the_rate() -> None:
    found = row(planned(network([1.0] * 4, up=[100] * 4), 2, link=link(bandwidth=10.0)), 2)
    assert found.seconds_per_batch == pytest.approx(10.0, rel=0.02)
    assert found.wait_fraction > 0.7


def test_more_processes_than_the_link_feeds_are_not_best() -> None:
    found = planned(network([1.0] * 4, up=[100] * 4), 4, link=link(bandwidth=50.0))  # 2 s an edge
    assert found.best.blocks == 2


def test_jitter_wants_depth() -> None:
    """And lag: a queue of activations is of use where targets are early enough for it."""
    calm, shaky = (
        planned(network([1.0] * 4), 4, depth=1, jitter_share=share, jitter_factor=4.0).rows[-1] for share in (0.0, 0.4)
    )
    assert (calm.lag, calm.depth) == (2, 1)
    assert shaky.depth > 1
    assert shaky.seconds_per_batch > calm.seconds_per_batch


def test_speed_is_a_matter_of_scale() -> None:
    layers = network([1.0, 2.0, 3.0])
    once, twice = (planned(layers, 3, speed=speed) for speed in (1.0, 2.0))
    for slow, fast in zip(once.rows, twice.rows, strict=True):
        assert fast.seconds_per_batch == pytest.approx(slow.seconds_per_batch / 2)
        assert (fast.cut, fast.speed_up) == (slow.cut, pytest.approx(slow.speed_up))


def test_memory_by_hand() -> None:
    """Two blocks of two layers, parameters four times, what is kept, and messages."""
    layer = Layer(forward=1, backward=2, parameters=1000, kept=100, head=Head(parameters=50, kept=7, up=30, down=5))
    found = row(planned(Network([layer] * 4, 64), 2, lag=3, depth=2), 2)
    states, kept = 4 * (2000 + 50), 200 + 7
    assert found.memory == [states + kept + 2 * 30 + 3 * 5, states + kept + 3 * 30 + 2 * 30 + 6 * 5]


def test_what_does_not_fit_is_left_out_and_named() -> None:
    layers = network([1.0] * 4, parameters=1000)
    assert [r.blocks for r in planned(layers, 4, memory=20_000.0).rows] == [1, 2, 3, 4]
    found = planned(layers, 4, memory=9_000.0)
    assert [r.blocks for r in found.rows] == [2, 3, 4]
    assert found.refused == [(1, 16_000 + 2)]
    assert all(max(r.memory) <= 9_000 for r in found.rows)


def test_a_cut_follows_the_memory_where_the_even_one_does_not_fit() -> None:
    large, small = Layer(forward=1, backward=2, parameters=1000), Layer(forward=1, backward=2, parameters=10)
    layers = Network([large, large, small, small, small, small], 64)
    assert row(planned(layers, 2), 2).cut == [3, 3]
    assert row(planned(layers, 2, memory=7_000.0), 2).cut == [1, 5]


def test_memory_limits_the_depth() -> None:
    shaky = {"jitter_share": 0.4, "jitter_factor": 4.0, "depth": 1}
    layers = network([1.0] * 4, up=[1000] * 4)
    free = planned(layers, 4, **shaky).rows[-1]
    less = planned(layers, 4, memory=max(free.memory) - 1.0, **shaky).rows[-1]
    assert 1 <= less.depth < free.depth
    assert max(less.memory) < max(free.memory)


def test_machines_that_nothing_fits_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=re.escape("machines.memory_gb=1e-06: must be at least ")) as error:
        planned(network([1.0] * 4, parameters=1000), 4, memory=1000.0)
    assert "4 blocks on as many processes" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_more_blocks_than_layers_or_ranks() -> None:
    assert [r.blocks for r in planned(network([1.0] * 3), 8).rows] == [1, 2, 3]
    assert [r.blocks for r in planned(network([1.0] * 8), 3).rows] == [1, 2, 3]


def test_the_best_is_the_smallest_of_the_fastest() -> None:
    assert planned(network([4.0, 1.0, 1.0, 1.0]), 4).best.blocks == 2


def test_of_many_ranks_only_what_promises_more_is_planned() -> None:
    found = planned(network([1.0] * 20 + [8.0]), 21)
    blocks = [r.blocks for r in found.rows]
    assert blocks == [1, 2, 3, 7]
    assert found.best.cut[-1] == 1


def test_pipelines_stand_beside_and_are_slower() -> None:
    four = row(planned(network([1.0] * 4), 4), 4)
    found = {one.schedule: one for one in four.pipelines}
    assert found["gpipe"].microbatches == found["1f1b"].microbatches == 64, "nothing is said against the smallest parts"
    for one in found.values():
        assert one.seconds_per_batch == pytest.approx((64 + 3) / 64, rel=1e-3)
        assert one.samples_per_second < four.samples_per_second
    assert max(found["1f1b"].memory) <= max(found["gpipe"].memory)


def test_parts_that_cost_whatever_their_size_are_few() -> None:
    dear = network([1.0] * 4, fixed_forward=0.1, fixed_backward=0.2)
    found = row(planned(dear, 4), 4)
    for one, parts in zip(found.pipelines, (2, 4), strict=True):  # 1f1b needs one for each rank
        assert one.microbatches == parts
        assert one.seconds_per_batch == pytest.approx((1 + (parts - 1) * 0.3) / parts * (parts + 3), rel=1e-3)


def test_a_rule_without_targets_needs_no_lag() -> None:
    layers = [replace(layer, head=Head()) for layer in network([1.0] * 6).layers]
    assert row(planned(Network(layers, 64), 6, lag=1, link=link(5.0)), 6).lag == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_ranks() -> None:
    found = planned(network([1.0] * 1000, batch=128, fixed_forward=0.01, fixed_backward=0.02), 1000, link=link(0.5))
    assert found.best.blocks == 1000
    assert found.best.speed_up == pytest.approx(1000, rel=0.02)
    assert all(one.samples_per_second < 0.1 * r.samples_per_second for r in found.rows[-3:] for one in r.pipelines)
