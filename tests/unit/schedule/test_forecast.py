"""Forecasts: against closed forms of the literature, the figures of the design, and each other."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from counterflow.schedule.forecast import Forecast, LinkSpec, StageCost, Workload, forecast
from tests.helpers.simulation import forecast_timetable

F, B, U = 3.0, 6.0, 2.0  # a block's seconds for a micro-batch, forward and backward, and for an update


def even(blocks: int, microbatches: int = 1, times: StageCost | None = None) -> Workload:
    """Blocks that take `F`, `B` and `U` with each of ``microbatches``, and 8 bytes for a message."""
    times = times or StageCost(F * microbatches, B * microbatches, U)
    return Workload([times] * blocks, up=[8] * (blocks - 1), down=[8] * (blocks - 1))


def pipeline(schedule: str, ranks: int, microbatches: int, each: int = 1, share: float = 0.5) -> Forecast:
    """Workload of ``each`` blocks a rank that take as long together as one of `even`."""
    times = StageCost(F * microbatches / each, B * microbatches / each, U / each, weight_share=share)
    workload = even(each * ranks, times=times)
    return forecast(schedule, workload, ranks=ranks, batches=10, microbatches=microbatches)


SIZES = [(2, 2), (2, 7), (4, 4), (4, 8), (8, 8), (8, 24)]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_gpipe_and_1f1b_have_one_bubble(schedule: str, ranks: int, microbatches: int) -> None:
    """Every update batch fills and drains the pipeline; updates of lower ranks hide in the bubble."""
    found = pipeline(schedule, ranks, microbatches)
    expected = (microbatches + ranks - 1) * (F + B) + U
    assert found.seconds_per_batch == pytest.approx(expected)
    assert found.wait_fraction == pytest.approx([(ranks - 1) * (F + B) / expected] * ranks)
    assert found.fill == pytest.approx((ranks - 1) * F)
    assert found.buffered == [0.0] * ranks
    held = {"gpipe": [microbatches] * ranks, "1f1b": [min(ranks - r, microbatches) for r in range(ranks)]}
    assert found.in_flight == pytest.approx([h / microbatches for h in held[schedule]])


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (8, 8), (8, 24)])
def test_zero_bubble_h1(ranks: int, microbatches: int, share: float) -> None:
    """The bubble of the paper (arXiv 2401.10241, table 2), (P - 1)(f + b - w), for the memory of 1F1B's first rank."""
    found = pipeline("zbh1", ranks, microbatches, share=share)
    bubble = (ranks - 1) * (F + B * (1 - share) - B * share)
    assert found.seconds_per_batch == pytest.approx(microbatches * (F + B) + bubble + U)
    assert found.in_flight == pytest.approx([ranks / microbatches] * ranks)


@pytest.mark.parametrize("each", [2, 3])
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (4, 12)])
def test_interleaving_divides_the_bubble(ranks: int, microbatches: int, each: int) -> None:
    found = pipeline("interleaved1f1b", ranks, microbatches, each)
    assert found.seconds_per_batch == pytest.approx(microbatches * (F + B) + (ranks - 1) * (F + B) / each + U)


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (4, 16)])
def test_zero_bubble_v(ranks: int, microbatches: int) -> None:
    """Nobody waits where forward, backward for the input and backward for the weights take the same time."""
    found = pipeline("zbv", ranks, microbatches, each=2)
    assert found.seconds_per_batch == pytest.approx(microbatches * (F + B) + U)
    assert found.wait_fraction == pytest.approx([0.0] * ranks, abs=1e-9)
    assert found.in_flight == pytest.approx([2 * ranks / microbatches] * ranks)


@pytest.mark.parametrize(("blocks", "ranks"), [(4, 4), (5, 2), (6, 1)])
def test_sequential_takes_all_in_turn(blocks: int, ranks: int) -> None:
    found = forecast("sequential", even(blocks), ranks=ranks, batches=6, microbatches=5)
    own = [len(r) for r in ([range(3), range(2)] if blocks == 5 else [range(blocks // ranks)] * ranks)]
    # The updates of all ranks but the bottom one hide behind what comes after.
    assert found.seconds_per_batch == pytest.approx(blocks * (F + B) + own[0] * U)
    assert found.in_flight == own


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved1f1b", "zbh1", "zbv"])
def test_one_rank_is_the_plain_loop(schedule: str) -> None:
    found = forecast(schedule, even(3), ranks=1, batches=4, microbatches=4)
    assert found.seconds_per_batch == pytest.approx(3 * (F + B + U))
    assert found.wait_fraction == pytest.approx([0.0])


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zbh1"])
def test_stages_of_several_blocks(schedule: str) -> None:
    """Five blocks on two ranks: as two blocks of the sums."""
    split = forecast(schedule, even(5, 4), ranks=2, batches=8, microbatches=4)
    sums = [StageCost(n * 4 * F, n * 4 * B, n * U) for n in (3, 2)]
    whole = forecast(schedule, Workload(sums, up=[8]), ranks=2, batches=8, microbatches=4)
    assert split.seconds_per_batch == pytest.approx(whole.seconds_per_batch)
    assert split.in_flight == pytest.approx([n * held for n, held in zip((3, 2), whole.in_flight, strict=True)])


@pytest.mark.parametrize(("blocks", "ranks"), [(1, 1), (2, 2), (8, 8), (32, 32), (9, 4)])
def test_free_takes_as_long_as_the_slowest_rank(blocks: int, ranks: int) -> None:
    times = [StageCost(F, B, U, target=0.25)] * blocks
    times[blocks // 2] = StageCost(2 * F, 2 * B, U, target=0.25)
    workload = Workload(times, up=[8] * (blocks - 1), down=[8] * (blocks - 1))
    found = forecast("free", workload, ranks=ranks, batches=12 * blocks)
    owned = [blocks // ranks + (rank < blocks % ranks) for rank in range(ranks)]
    at = next(rank for rank in range(ranks) if sum(owned[: rank + 1]) > blocks // 2)
    work = [n * (F + B + U + 0.25) + (F + B) * (rank == at) for rank, n in enumerate(owned)]
    assert found.seconds_per_batch == pytest.approx(max(work))
    assert found.wait_fraction == pytest.approx([1 - w / max(work) for w in work], abs=1e-9)
    assert found.in_flight == [1.0] * ranks  # whatever the number of ranks


def test_free_buffers_do_not_grow_with_the_ranks() -> None:
    """A ring of ``depth`` and one receives below, two buffers above."""
    found = forecast("free", even(5), ranks=5, batches=20, depth=4)
    assert found.buffered == [2.0, 7.0, 7.0, 7.0, 5.0]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_how_far_a_block_runs_ahead(depth: int) -> None:
    """While block 2 learns from its first activation it holds that, and ``depth`` more are there; two wait to leave,
    and block 1 has no buffer for the next one."""
    workload = Workload([StageCost(1.0, 1.0), StageCost(1.0, 1000.0)], up=[8], down=[8])
    _, timetable = forecast_timetable("free", workload, ranks=2, batches=20, lag=20, depth=depth)
    below, above = timetable.spans
    learnt = next(span.end for span in above if str(span.action) == "2L0")
    ahead = [span for span in below if span.end < learnt and span.action.completes is None and span.end > span.start]
    assert [str(span.action) for span in ahead] == [f"1F{n}" for n in range(1 + depth + 2 + 1)]


def test_fill_of_the_free_engine() -> None:
    """The first receive is told to the top, and the first target falls all the way down; then every block sends its
    activation up before it learns."""
    hop = 0.5 + 8 / 16
    found = forecast("free", even(6), ranks=6, batches=20, link=LinkSpec(latency=0.5, bandwidth=16.0))
    assert found.fill == pytest.approx(0.5 + 5 * hop + 5 * (F + hop))


TABLE = {  # docs/concepts.md, Semantics: 8 blocks, forward one third of a batch time, latency in batch times
    0.0: {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 6: 1.0},
    0.25: {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 6: 1.0},
    0.5: {1: 1.28, 2: 1.0, 3: 1.0, 4: 1.0, 6: 1.0},
    1.0: {1: 2.14, 2: 1.16, 3: 1.0, 4: 1.0, 6: 1.0},
    2.0: {1: 3.86, 2: 2.08, 3: 1.42, 4: 1.08, 6: 1.0},
}


@pytest.mark.parametrize("latency", TABLE)
def test_lag_hides_latency_as_in_the_design(latency: float) -> None:
    """Given room for the activations that are under way."""
    workload = even(8, times=StageCost(1 / 3, 2 / 3))
    found = {
        lag: forecast(
            "free", workload, ranks=8, batches=200, lag=lag, depth=6, link=LinkSpec(latency)
        ).seconds_per_batch
        for lag in TABLE[latency]
    }
    assert found == pytest.approx(TABLE[latency], rel=0.02)


@pytest.mark.parametrize("latency", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_hides_latency(latency: float, depth: int) -> None:
    """A receive is told to the sender, meets a message, brings it and is held until that is learnt: so many seconds
    for each of the ``depth`` and one receives of a channel. They come in rounds, which the steady part may cut."""
    workload = even(4, times=StageCost(1 / 3, 2 / 3))
    found = forecast("free", workload, ranks=4, batches=200, lag=12, depth=depth, link=LinkSpec(latency))
    assert found.seconds_per_batch == pytest.approx(max(1.0, (2 * latency + 1) / (depth + 1)), rel=0.01)


def test_a_rule_without_targets_needs_no_lag() -> None:
    workload = Workload([StageCost(1 / 3, 2 / 3)] * 8, up=[8] * 7)
    assert forecast(
        "free", workload, ranks=8, batches=60, lag=1, depth=4, link=LinkSpec(2.0)
    ).seconds_per_batch == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["free", "gpipe", "1f1b"])
def test_a_slow_link_is_the_limit(schedule: str) -> None:
    """40 bytes a batch at 2 bytes a second: 20 s, where a block takes 11; the way back has a link of its own."""
    workload = Workload([StageCost(F, B, U)] * 4, up=[8, 40, 8], down=[8] * 3)
    found = forecast(schedule, workload, ranks=4, batches=40, microbatches=4, link=LinkSpec(bandwidth=2.0))
    if schedule == "free":
        assert found.seconds_per_batch == pytest.approx(20.0)
    else:
        assert found.seconds_per_batch > 40.0


def test_latency_couples_only_the_ranks_of_pipelines() -> None:
    fast, slow = (
        {s: forecast(s, even(4), ranks=4, batches=60, microbatches=4, link=LinkSpec(latency)) for s in ("free", "1f1b")}
        for latency in (0.0, F)
    )
    assert slow["free"].seconds_per_batch == pytest.approx(fast["free"].seconds_per_batch)
    # Down and up again over three links, at least.
    assert slow["1f1b"].seconds_per_batch >= fast["1f1b"].seconds_per_batch + 6 * F


def stumbling(seed: int, blocks: int) -> Callable[[int, int], float]:
    """With one batch in ten, one block takes three times as long."""
    slow: dict[int, int] = {}
    dice = random.Random(seed)
    for n in range(1000):
        if dice.random() < 0.1:
            slow[n] = dice.randint(1, blocks)
    return lambda block, n: 3.0 if slow.get(n) == block else 1.0


def test_depth_absorbs_jitter() -> None:
    """Each block alone takes 1 + 2 / 80 of a batch time; what is lost beyond that shrinks with the depth."""
    workload = even(8, times=StageCost(1 / 3, 2 / 3))
    found = {
        depth: forecast("free", workload, ranks=8, batches=600, lag=8, depth=depth, jitter=stumbling(1, 8))
        for depth in (1, 2, 4, 8)
    }
    seconds = [found[depth].seconds_per_batch for depth in (1, 2, 4, 8)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1]
    assert 1.0 < seconds[-1] < 1.1
    lock = forecast(
        "1f1b", even(8, times=StageCost(1 / 3, 2 / 3)), ranks=8, batches=600, microbatches=8, jitter=stumbling(1, 8)
    )
    assert lock.seconds_per_batch > 1.25 * seconds[2]


def test_jitter_of_a_batch_is_that_of_its_turn() -> None:
    """A target that leaves two batches early takes as long as the turn that it leaves in."""
    times = StageCost(F, B, U, target=1.0)
    _, once = forecast_timetable(
        "free", even(3, times=times), ranks=3, batches=40, jitter=lambda k, n: 10.0 if (k, n) == (2, 30) else 1.0
    )
    assert [str(span.action) for span in once.spans[1] if span.end - span.start > B + U] == [*("2T32", "2F30", "2L30")]


def test_overhead_is_work_of_every_action() -> None:
    plain, costly = (forecast("free", even(3), ranks=3, batches=30, overhead=o) for o in (0.0, 0.5))
    assert costly.seconds_per_batch - plain.seconds_per_batch == pytest.approx(3 * 0.5)  # target, forward, learn
    assert costly.wait_fraction == pytest.approx([0.0] * 3, abs=1e-9)
    plain, costly = (forecast("gpipe", even(1, 4), ranks=1, batches=4, overhead=o) for o in (0.0, 0.5))
    assert costly.seconds_per_batch - plain.seconds_per_batch == pytest.approx(3 * 0.5)  # forward, backward, update


def test_timetable_as_drawn() -> None:
    workload = even(2, 2, StageCost(2.0, 4.0, 1.0))
    found, timetable = forecast_timetable("1f1b", workload, ranks=2, batches=2, microbatches=2)
    drawn = [
        " ".join(f"{s.action}@{s.start:g}-{s.end:g}" for s in spans if s.end > s.start) for spans in timetable.spans
    ]
    assert drawn == [
        "0F0@0-1 0F1@1-2 0B0@4-6 0B1@7-9 0U@9-10 0F0@10-11 0F1@11-12 0B0@14-16 0B1@17-19 0U@19-20",
        "1F0@1-2 1B0@2-4 1F1@4-5 1B1@5-7 1U@7-8 1F0@11-12 1B0@12-14 1F1@14-15 1B1@15-17 1U@17-18",
    ]
    assert forecast("1f1b", workload, ranks=2, batches=2, microbatches=2) == found, "recorded or not"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "2f2b"}, "schedule=2f2b: must be one of free, sequential, gpipe, 1f1b, interleaved1f1b, zbh1"),
        ({"ranks": 5}, "ranks=5: must be between 1 and blocks=4"),
        ({"batches": 1}, "batches=1: must be at least 2"),
        ({"microbatches": 0}, "microbatches=0: must be at least 1"),
        ({"depth": 0}, "depth=0: must be at least 1"),
        ({"lag": 0}, "lag=0: must be at least 1 on ranks=4"),
        ({"overhead": -1.0}, r"overhead=-1.0: must be at least 0"),
        (
            {"schedule": "1f1b", "microbatches": 3},
            "microbatches=3: schedule=1f1b needs at least one for each of ranks=4",
        ),
        ({"schedule": "interleaved1f1b", "microbatches": 4}, "blocks=4 must be a multiple of ranks=4, and more"),
        ({"schedule": "interleaved1f1b", "ranks": 2, "microbatches": 3}, "microbatches=3 must be a multiple of ranks"),
        ({"schedule": "zbv", "ranks": 2, "microbatches": 3}, "microbatches=3 must be at least 4"),
    ],
)
def test_what_no_run_allows_is_refused(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"schedule": "free", "workload": even(4), "ranks": 4, "batches": 10, **options}
    with pytest.raises(ValueError, match=message) as caught:
        forecast(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_loads_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"up=\[1\]: must be 2 sizes"):
        replace(even(3), up=[1])
    with pytest.raises(ValueError, match=r"down=\[1\]: must be 2 sizes"):
        replace(even(3), down=[1])
    with pytest.raises(ValueError, match="stages"):
        Workload([], up=[])
    with pytest.raises(ValueError, match=r"forward=-1\.0: must be"):
        StageCost(-1.0, 1.0)
    with pytest.raises(ValueError, match=r"weight_share=2: must be"):
        StageCost(1.0, 1.0, weight_share=2)
    with pytest.raises(ValueError, match="bandwidth=0: must be"):
        LinkSpec(bandwidth=0)
    with pytest.raises(ValueError, match="latency=-1: must be"):
        LinkSpec(latency=-1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_ranks() -> None:
    """Planned in well under two minutes of a core: one fill of a thousand batches, then nobody waits."""
    start = time.process_time()
    found = forecast("free", even(1000, times=StageCost(1 / 3, 2 / 3)), ranks=1000, batches=3000)
    assert time.process_time() - start < 120
    assert found.seconds_per_batch == pytest.approx(1.0)
    assert found.fill == pytest.approx(999 / 3)
    assert max(found.wait_fraction) < 1e-6
