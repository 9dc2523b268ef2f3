"""Clocks of other machines, brought to the first rank's by nothing but barriers."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from counterflow.trace import rank_trace
from counterflow.trace.rank_trace import Offset, RankTrace, Stamps, barrier_stamps, clock_domain, to_rank_0
from counterflow.trace.recorder import Recorder


def barriers(ahead: float, draw: random.Random, start: float = 0.0) -> tuple[Stamps, Stamps]:
    """Five barriers as two ranks see them, of which the first one's clock is ``ahead`` of the other's."""
    first, other, now = [], [], start
    for _ in range(5):
        entered = [now + draw.random(), now + draw.random()]
        left = [max(entered) + draw.random(), max(entered) + draw.random()]
        first.append((entered[0] + ahead, left[0] + ahead))
        other.append((entered[1], left[1]))
        now = max(left)
    return first, other


@pytest.mark.parametrize("ahead", [0.0, 1234.5, -0.01])
def test_the_offset_is_within_its_error(ahead: float) -> None:
    for seed in range(50):
        found = Offset.between(*barriers(ahead, random.Random(seed)))
        assert abs(found.seconds - ahead) <= found.error
        assert found.error < 1.0  # as long as a barrier takes


def test_offset_by_hand() -> None:
    """The other one left at 12 at the earliest when the first one entered at 100, and entered at 11 before 105."""
    found = Offset.between([(100.0, 105.0)], [(11.0, 12.0)])
    assert (found.at, found.seconds, found.error) == (12.0, (88.0 + 94.0) / 2, 3.0)


def test_between_two_stamps_a_clock_drifts_evenly() -> None:
    offsets = [Offset(10.0, 100.0, 0.5), Offset(20.0, 101.0, 0.25)]
    times = to_rank_0(np.array([5.0, 10.0, 15.0, 20.0, 30.0]), offsets)
    assert times.tolist() == [105.0, 110.0, 115.5, 121.0, 131.0]


def test_meeting_is_five_barriers_of_different_names() -> None:
    names: list[str] = []
    stamps = barrier_stamps(names.append, "start")
    assert len(stamps) == len(set(names)) == 5
    times = [time for stamp in stamps for time in stamp]
    assert times == sorted(times)


def recorded(start: float) -> Recorder:
    recorder = Recorder()
    recorder.add("forward", 2, 0, start, start + 1.0)
    return recorder


def left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, machines: tuple[str, str], late: bool
) -> tuple[RankTrace, Sequence[Offset], float]:
    """Stamps that the first rank reads of the second, whose clock is 50 s behind at the start and 52 at the end."""
    begin = barriers(50.0, random.Random(1))
    end = barriers(52.0, random.Random(2), 1000.0)
    for rank, (name, stamps) in enumerate(zip(machines, zip(begin, end, strict=True), strict=True)):
        monkeypatch.setattr(rank_trace, "clock_domain", lambda name=name: name)
        rank_trace.write(
            folder / "spans" / f"{rank}",
            RankTrace.of(rank, recorded(500.0)),
            stamps[1:] if rank and late else stamps,
        )
    found, offsets = rank_trace.read(folder / "spans" / "1", folder / "spans" / "0")
    return found, offsets, float(found.spans["start"][0])


def test_on_one_machine_nothing_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, offsets, start = left(tmp_path, monkeypatch, ("a", "a"), late=False)
    assert (found.rank, found.lanes, start, offsets) == (1, {2: "block 2"}, 500.0, ())


def test_spans_of_another_machine_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, offsets, start = left(tmp_path, monkeypatch, ("a", "b"), late=False)
    error = max(offset.error for offset in offsets)
    assert 0 < error < 1
    assert start == pytest.approx(551.0, abs=error + 0.05)
    assert float(found.spans["end"][0]) - start == pytest.approx(1.0, abs=0.01)


def test_who_came_late_has_the_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (offset,), start = left(tmp_path, monkeypatch, ("a", "b"), late=True)
    assert start == pytest.approx(552.0, abs=offset.error)


def test_a_rank_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spans" / "0"
    rank_trace.write(path, RankTrace.of(0, Recorder()), [[(0.0, 1.0)]])
    found, _ = rank_trace.read(path, path)
    assert len(found.spans) == 0
    assert found.lanes == {}


def test_this_machine_is_itself() -> None:
    assert clock_domain() == clock_domain() != ""
