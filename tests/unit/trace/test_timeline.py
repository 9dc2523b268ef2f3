from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.trace import timeline
from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.recorder import Recorder
from counterflow.trace.timeline import Panel

BATCHES = 14


def column(ranks: int, forward: float, begin: float = 100.0) -> list[RankTrace]:
    """Every rank takes a second for a batch, of which it waits for 0.2 and ``forward`` are its forward pass."""
    found = []
    for rank in range(ranks):
        recorder = Recorder()
        for n in range(BATCHES):
            start = begin + rank * forward + n
            recorder.add("receive", rank + 1, n, start, start + 0.2)
            recorder.add("forward", rank + 1, n, start, start + forward)
            recorder.add("backward", rank + 1, n, start + forward + 0.1, start + 0.8)
            recorder.add("update", rank + 1, n, start + 0.8, start + 0.9)
            recorder.add("learn", rank + 1, n, start + forward, start + 1.0)
        found.append(RankTrace.of(rank, recorder))
    return found


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """All that are saved."""
    found: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *args: Any, **kwargs: Any) -> None:
        found.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", kept)
    return found


def drawn(figures: list[Figure], path: Path, panels: Sequence[Panel], window: range | None = None) -> list[Axes]:
    timeline.draw(panels, path, window)
    assert path.read_bytes().startswith(b"\x89PNG")
    return figures[-1].axes


def boxes(axes: Axes) -> int:
    return sum(len(collection.get_paths()) for collection in axes.collections)


def numbers(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_there_is_a_box_for_each_span(figures: list[Figure], tmp_path: Path) -> None:
    traces = column(3, 0.4)
    (axes,) = drawn(figures, tmp_path / "t.png", [Panel("BLL", traces)], range(0, BATCHES))
    assert boxes(axes) == sum(len(trace.spans) for trace in traces) == 3 * 5 * BATCHES


def test_the_top_is_at_the_top(figures: list[Figure], tmp_path: Path) -> None:
    (axes,) = drawn(figures, tmp_path / "t.png", [Panel("BLL", column(3, 0.4)[::-1])])
    names = {label.get_text(): y for label, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)}
    assert names == {"rank 0, block 1": 0, "rank 1, block 2": 1, "rank 2, block 3": 2}
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert axes.get_title("left") == "BLL"


def test_by_default_the_fill_and_ten_batches_are_shown(figures: list[Figure], tmp_path: Path) -> None:
    (axes,) = drawn(figures, tmp_path / "t.png", [Panel("BLL", column(3, 0.4))])
    low, high = axes.get_xlim()
    assert low == 0
    assert high == pytest.approx(1e3 * (2 * 0.4 + 10 - 0.2))  # nobody waits for nothing
    assert {int(n) for n in numbers(axes)} == set(range(11))  # below, the eleventh has begun


def test_panels_share_their_seconds_and_begin_with_the_same_batch(figures: list[Figure], tmp_path: Path) -> None:
    panels = [Panel("fast", column(2, 0.4)), Panel("slow", column(5, 0.7, begin=-3.0))]
    fast, slow = drawn(figures, tmp_path / "t.png", panels, range(4, 6))
    assert fast.get_xlim() == slow.get_xlim()
    assert slow.get_xlim()[1] == pytest.approx(1e3 * (4 * 0.7 + 2))
    assert "4" in numbers(fast)
    assert "4" in numbers(slow)
    assert "3" in numbers(slow)  # above, the one before is not done
    assert "0" not in numbers(slow) + numbers(fast)


def test_numbers_are_where_there_is_room_for_them(figures: list[Figure], tmp_path: Path) -> None:
    (axes,) = drawn(figures, tmp_path / "t.png", [Panel("", column(1, 0.4))], range(0, 1))
    places = [(text.get_text(), text.get_position()[0]) for text in axes.texts if text.get_text() == "0"]
    assert sorted(places) == [("0", pytest.approx(100.0)), ("0", pytest.approx(450.0))]  # forward without its wait
    (axes,) = drawn(figures, tmp_path / "t.png", [Panel("", [*column(1, 0.4), *column(1, 0.4, begin=1000.0)])])
    assert boxes(axes) > 0
    assert not numbers(axes)


def test_the_legend_tells_what_is_there(figures: list[Figure], tmp_path: Path) -> None:
    drawn(figures, tmp_path / "t.png", [Panel("BLL", column(2, 0.4))])
    (legend,) = figures[-1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["forward", "loss", "backward", "update"]


def test_what_recorded_nothing_can_be_drawn(figures: list[Figure], tmp_path: Path) -> None:
    nothing = Panel("", [RankTrace.of(0, Recorder())])
    (axes,) = drawn(figures, tmp_path / "t.png", [nothing])
    assert boxes(axes) == 0
    assert len(drawn(figures, tmp_path / "t.png", [nothing, Panel("BLL", column(2, 0.4))], range(90, 99))) == 2
