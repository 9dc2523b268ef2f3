"""A plan is a function of times and machines, and follows from what they are."""

import re
from dataclasses import replace
from typing import Any

import pytest

from counterflow.planner.local_forecast import LocalRun
from counterflow.planner.model_profile import BlockOverhead, LayerProfile, ModelProfile
from counterflow.planner.search import Candidate, SearchResult
from tests.helpers.synthetic_profiles import profile, searched

SHAKY: dict[str, Any] = {"jitter_share": 0.4, "jitter_factor": 4.0, "depth": 1}


def candidate(found: SearchResult, blocks: int) -> Candidate:
    return next(candidate for candidate in found.candidates if candidate.blocks == blocks)


def test_the_same_times_give_the_same_plan() -> None:
    layers = profile([1, 2, 1, 3, 1, 1])
    machines = {"jitter_share": 0.2, "jitter_factor": 3.0, "latency": 0.5}
    assert searched(layers, 4, **machines) == searched(layers, 4, **machines)


def test_cuts_are_even_and_the_rate_is_that_of_the_slowest_block() -> None:
    found = searched(profile([1, 2, 1, 3, 1, 1], batch=60), 3)
    assert [r.cut for r in found.candidates] == [[6], [3, 3], [2, 2, 2]]
    assert [r.seconds_per_batch for r in found.candidates] == [pytest.approx(slowest) for slowest in (9, 5, 4)]
    for r in found.candidates:
        assert r.samples_per_second == pytest.approx(60 / r.seconds_per_batch)
        assert r.speed_up == pytest.approx(9 / r.seconds_per_batch)


def test_a_head_moves_the_cut() -> None:
    plain = profile([1, 1, 1, 1, 1, 1])
    dear = replace(plain.layers[2], block_overhead=BlockOverhead(learn=3.0))
    layers = [*plain.layers[:2], dear, *plain.layers[3:]]
    assert candidate(searched(plain, 2), 2).cut == [3, 3]
    moved = candidate(searched(ModelProfile(layers, 64), 2), 2)
    assert moved.cut in ([4, 2], [2, 4])  # 4 | 5 as 5 | 4 before it, and not 6 | 3


@pytest.mark.parametrize(("latency", "lag"), [(0, 2), (0.5, 2), (1, 3), (2, 5)])
def test_the_lag_is_what_the_link_needs(latency: float, lag: int) -> None:
    """The design's table: at a latency of one batch time lag 2 is 16 % slower than lag 3; of two, lag 4 is by 8 %."""
    four = candidate(searched(profile([1.0] * 4), 4, latency=latency), 4)
    assert four.lag == lag
    assert four.seconds_per_batch == pytest.approx(1.0, rel=0.02)


def test_the_lag_is_never_below_the_one_that_is_wanted() -> None:
    assert candidate(searched(profile([1.0] * 4), 4, lag=6), 4).lag == 6


def test_a_long_link_is_looked_at_to_its_end() -> None:
    """Thirty batch times: every lag on the way there is a little faster than the one before."""
    four = candidate(searched(profile([1.0] * 4), 4, latency=30.0), 4)
    assert four.seconds_per_batch == pytest.approx(1.0, rel=0.02)
    assert 30 < four.lag < 80


def test_a_narrow_link_prefers_small_activations() -> None:
    sizes = [100, 100, 100, 10, 100, 0]
    layers = profile([1.0] * 6, up=sizes)
    assert candidate(searched(layers, 2), 2).cut == [3, 3]
    narrow = candidate(searched(layers, 2, bandwidth=20.0), 2)
    assert narrow.cut == [4, 2]
    assert narrow.seconds_per_batch == pytest.approx(4.0, rel=0.01)
    assert narrow.up == pytest.approx(10 / 4.0, rel=0.01)


def test_a_link_that_nothing_helps_is_the_rate() -> None:
    found = candidate(searched(profile([1.0] * 4, up=[100] * 4), 2, bandwidth=10.0), 2)
    assert found.seconds_per_batch == pytest.approx(10.0, rel=0.02)
    assert found.wait_fraction > 0.7


def test_more_processes_than_the_link_feeds_are_not_best() -> None:
    found = searched(profile([1.0] * 4, up=[100] * 4), 4, bandwidth=50.0)  # 2 s an edge
    assert found.best.blocks == 2


@pytest.fixture(scope="module")
def shaky() -> Candidate:
    """Four processes that often take four times as long; without a bandwidth, what they send costs no time."""
    return searched(profile([1.0] * 4, up=[1000] * 4), 4, **SHAKY).candidates[-1]


def test_jitter_wants_depth(shaky: Candidate) -> None:
    """And lag: a queue of activations is of use where targets are early enough for it."""
    calm = searched(profile([1.0] * 4), 4, depth=1).candidates[-1]
    assert (calm.lag, calm.depth) == (2, 1)
    assert shaky.depth > 1
    assert shaky.seconds_per_batch > calm.seconds_per_batch


def test_speed_is_a_matter_of_scale() -> None:
    layers = profile([1.0, 2.0, 3.0])
    once, twice = (searched(layers, 3, speed=speed) for speed in (1.0, 2.0))
    for slow, fast in zip(once.candidates, twice.candidates, strict=True):
        assert fast.seconds_per_batch == pytest.approx(slow.seconds_per_batch / 2)
        assert (fast.cut, fast.speed_up) == (slow.cut, pytest.approx(slow.speed_up))


def test_memory_by_hand() -> None:
    """Two blocks of two layers, parameters four times, what is kept, and messages."""
    layer = LayerProfile(
        forward=1,
        backward=2,
        parameters=1000,
        kept=100,
        block_overhead=BlockOverhead(parameters=50, kept=7, up=30, down=5),
    )
    found = candidate(searched(ModelProfile([layer] * 4, 64), 2, lag=3, depth=2), 2)
    states, kept = 4 * (2000 + 50), 200 + 7
    assert found.memory == [states + kept + 2 * 30 + 3 * 5, states + kept + 3 * 30 + 2 * 30 + 6 * 5]


def test_what_does_not_fit_is_left_out_and_named() -> None:
    layers = profile([1.0] * 4, parameters=1000)
    assert [r.blocks for r in searched(layers, 4, memory=20_000.0).candidates] == [1, 2, 3, 4]
    found = searched(layers, 4, memory=9_000.0)
    assert [r.blocks for r in found.candidates] == [2, 3, 4]
    assert found.too_large == [(1, 16_000 + 2)]
    assert all(max(r.memory) <= 9_000 for r in found.candidates)


def test_a_cut_follows_the_memory_where_the_even_one_does_not_fit() -> None:
    large = LayerProfile(forward=1, backward=2, parameters=1000)
    small = replace(large, parameters=10)
    layers = ModelProfile([large, large, small, small, small, small], 64)
    assert candidate(searched(layers, 2), 2).cut == [3, 3]
    assert candidate(searched(layers, 2, memory=7_000.0), 2).cut == [1, 5]


def test_memory_limits_the_depth(shaky: Candidate) -> None:
    layers = profile([1.0] * 4, up=[1000] * 4)
    less = searched(layers, 4, memory=max(shaky.memory) - 1.0, **SHAKY).candidates[-1]
    assert 1 <= less.depth < shaky.depth
    assert max(less.memory) < max(shaky.memory)


def test_machines_that_nothing_fits_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=re.escape("machines.memory_gb=1e-06: must be at least ")) as error:
        searched(profile([1.0] * 4, parameters=1000), 4, memory=1000.0)
    assert "4 blocks on as many processes" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_more_blocks_than_layers_or_ranks() -> None:
    assert [r.blocks for r in searched(profile([1.0] * 3), 8).candidates] == [1, 2, 3]
    assert [r.blocks for r in searched(profile([1.0] * 8), 3).candidates] == [1, 2, 3]


def test_the_best_is_the_smallest_of_the_fastest() -> None:
    assert searched(profile([4.0, 1.0, 1.0, 1.0]), 4).best.blocks == 2


def test_of_many_ranks_only_what_promises_more_is_planned() -> None:
    found = searched(profile([1.0] * 20 + [8.0]), 21)
    blocks = [r.blocks for r in found.candidates]
    assert blocks == [1, 2, 3, 7]
    assert found.best.cut[-1] == 1


def test_pipelines_stand_beside_and_are_slower() -> None:
    four = candidate(searched(profile([1.0] * 4), 4), 4)
    found = {one.schedule: one for one in four.pipelines}
    assert found["gpipe"].microbatches == found["1f1b"].microbatches == 64, "nothing is said against the smallest parts"
    for one in found.values():
        assert one.seconds_per_batch == pytest.approx((64 + 3) / 64, rel=1e-3)
        assert one.samples_per_second < four.samples_per_second
    assert max(found["1f1b"].memory) <= max(found["gpipe"].memory)


def test_parts_that_cost_whatever_their_size_are_few() -> None:
    dear = profile([1.0] * 4, fixed_forward=0.1, fixed_backward=0.2)
    found = candidate(searched(dear, 4), 4)
    for one, parts in zip(found.pipelines, (2, 4), strict=True):  # 1f1b needs one for each rank
        assert one.microbatches == parts
        assert one.seconds_per_batch == pytest.approx((1 + (parts - 1) * 0.3) / parts * (parts + 3), rel=1e-3)


def test_a_rule_without_targets_needs_no_lag() -> None:
    layers = [replace(layer, block_overhead=BlockOverhead()) for layer in profile([1.0] * 6).layers]
    assert candidate(searched(ModelProfile(layers, 64), 6, lag=1, latency=5.0), 6).lag == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_ranks() -> None:
    found = searched(profile([1.0] * 1000, batch=128, fixed_forward=0.01, fixed_backward=0.02), 1000, latency=0.5)
    assert found.best.blocks == 1000
    assert found.best.speed_up == pytest.approx(1000, rel=0.02)
    assert all(
        one.samples_per_second < 0.1 * r.samples_per_second for r in found.candidates[-3:] for one in r.pipelines
    )


def test_nodes_take_the_placement_that_sends_less() -> None:
    """Small activations: blocks lie across the nodes. Large ones: copies do."""
    machines: dict[str, Any] = {"nodes": 2, "bandwidth": 1000.0, "replicas": 2}
    small = candidate(searched(profile([1.0] * 4, up=[10] * 4, parameters=1000), 8, **machines), 4)
    large = candidate(searched(profile([1.0] * 4, up=[10_000] * 4, parameters=10), 8, **machines), 4)
    assert (small.inner, large.inner) == ("replicas", "pipeline")
    for found in (small, large):
        assert (found.blocks, found.processes, found.nodes) == (4, 8, 2)
        assert found.samples_per_second == pytest.approx(64 / found.seconds_per_batch)
        crossing = {trial.inner: sum(trial.crossing.values()) for trial in found.trials}
        assert crossing[found.inner] == min(crossing.values())


def test_blocks_that_no_nodes_share_evenly_are_left_out() -> None:
    found = searched(profile([1.0] * 4), 8, nodes=2, replicas=2)
    assert [(r.blocks, r.processes, r.nodes) for r in found.candidates] == [(1, 2, 1), (2, 4, 1), (3, 6, 2), (4, 8, 2)]
    assert [r.blocks for r in searched(profile([1.0] * 9), 10, nodes=2).candidates] == [1, 2, 3, 4, 5, 6, 8]


def test_replicas_multiply_the_rate() -> None:
    """The profile is that of a replica's share."""
    found = candidate(searched(profile([1.0] * 2), 4, replicas=2), 2)
    assert found.seconds_per_batch == pytest.approx(1.0)
    assert found.speed_up == pytest.approx(4.0)
    assert found.pipelines == ()
    assert found.bytes_per_batch == {"up": [0], "down": [1], "sync": [0, 0]}


def test_bytes_of_meetings_are_shared_out_to_batches() -> None:
    layers, rare = profile([1.0] * 2, parameters=300), LocalRun(gradients=False, every=10, delay=5)
    assert candidate(searched(layers, 6, replicas=3), 2).bytes_per_batch["sync"] == pytest.approx([400, 400])
    assert candidate(searched(layers, 6, replicas=3, local=rare), 2).bytes_per_batch["sync"] == pytest.approx([40, 40])


def test_the_wire_is_the_most_exact_one_that_is_as_fast_as_others() -> None:
    exact = profile([1.0] * 4, up=[400] * 4)
    coarser = {"bf16": profile([1.0] * 4, up=[200] * 4), "int8": profile([1.0] * 4, up=[100] * 4)}

    def wire(bandwidth: float | None) -> str:
        return candidate(searched(exact, 4, coarser=coarser, bandwidth=bandwidth), 4).wire

    assert [wire(bandwidth) for bandwidth in (None, 1000.0, 300.0, 150.0)] == ["fp32", "fp32", "bf16", "int8"]


def test_a_wire_that_takes_long_to_pack_is_not_taken() -> None:
    exact = profile([1.0] * 4, up=[110] * 4)
    slow = {"int8": profile([1.5] * 4, up=[30] * 4)}
    found = candidate(searched(exact, 4, coarser=slow, bandwidth=100.0), 4)
    assert (found.wire, [trial.wire for trial in found.trials]) == ("fp32", ["fp32", "int8"])
    assert found.seconds_per_batch == pytest.approx(1.1, rel=0.01)


def test_wires_are_tried_only_while_links_are_what_takes_longest() -> None:
    exact, coarse = profile([1.0] * 4, up=[50] * 4), {"bf16": profile([1.0] * 4, up=[25] * 4)}
    found = candidate(searched(exact, 4, coarser=coarse, bandwidth=100.0), 4)
    assert [trial.wire for trial in found.trials] == ["fp32"]
