"""One place for the style of all plots."""

import re
from pathlib import Path

import matplotlib
from matplotlib.colors import to_rgb

from counterflow import plot_style

SOURCE = Path(plot_style.__file__).parent
COLOURS = {
    value for value in vars(plot_style).values() if isinstance(value, str) and re.fullmatch("#[0-9a-f]{6}", value)
}


def test_matplotlib_knows_every_parameter() -> None:
    with matplotlib.rc_context(plot_style.STYLE):
        assert matplotlib.rcParams["grid.color"] == plot_style.GRID


def test_no_other_file_says_the_style_again() -> None:
    others = {path: path.read_text() for path in SOURCE.rglob("*.py") if path != Path(plot_style.__file__)}
    assert len(COLOURS) == 11
    for path, text in others.items():
        assert not COLOURS & set(re.findall("#[0-9a-f]{6}", text)), path
        assert "axes.spines.top" not in text, path


def test_colours_can_be_told_apart() -> None:
    """From each other, and from white paper by their lightness."""
    colours = [to_rgb(colour) for colour in plot_style.ALGORITHMS.values()]
    assert len(set(colours)) == len(colours)
    assert max(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours) < 0.75
