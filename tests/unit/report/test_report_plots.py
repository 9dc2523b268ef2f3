"""Every plot shows the data of the runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from counterflow.report.activation_plots import (
    Distances,
    class_distances,
    distances,
    embed,
    layer_embeddings,
    shown_layers,
)
from counterflow.report.groups import ConfigGroup, compare
from counterflow.report.line_plots import (
    accuracy_by_blocks,
    accuracy_by_cost,
    accuracy_by_exit,
    accuracy_by_layers,
    associated_losses,
    block_accuracies,
    learning_curves,
    save,
)
from counterflow.report.line_styles import colour
from counterflow.report.plot_selection import plots
from counterflow.report.runs import read_run

MakeRun = Callable[..., Path]


def groups(*paths: Path) -> Sequence[ConfigGroup]:
    (comparison,) = compare(map(read_run, paths))
    return comparison.groups


def kinds(*paths: Path) -> list[str]:
    return [plot.name for comparison in compare(map(read_run, paths)) for plot in plots(comparison)]


def points(axis: Axes) -> dict[str, dict[float, tuple[float, float]]]:
    """By label and x: y, and the length of the error bar."""
    result = {}
    for bar in axis.containers:
        assert isinstance(bar, ErrorbarContainer)
        line, _, (segments,) = bar.lines
        lengths = [(high[1] - low[1]) / 2 for low, high in segments.get_segments()]
        result[str(bar.get_label())] = {
            float(x): (float(y), length) for (x, y), length in zip(line.get_xydata(), lengths, strict=True)
        }
    return result


def lines(axis: Axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): [tuple(map(float, xy)) for xy in line.get_xydata()] for line in axis.lines}


def by_blocks(make_run: MakeRun) -> list[Path]:
    return [
        make_run("p1", "bp", 1, 0.94, blocks=1),
        make_run("p2", "bp", 2, 0.96, blocks=1),
        *(
            make_run(f"b{n}-{seed}", "bll", seed, 0.9 - 0.01 * n + 0.02 * seed, blocks=n)
            for n in (2, 4)
            for seed in (1, 2)
        ),
    ]


def test_accuracy_by_blocks(make_run: MakeRun) -> None:
    paths = by_blocks(make_run)
    assert "table1-cpu-blocks" in kinds(*paths)
    axis = accuracy_by_blocks(groups(*paths)).axes[0]
    half = 100 * np.std([0.02, 0.04], ddof=1)
    assert points(axis)["BLL"] == {
        2: (pytest.approx(91.0), pytest.approx(half)),
        4: (pytest.approx(89.0), pytest.approx(half)),
    }
    dashed = next(line for line in axis.lines if line.get_label() == "BP (2 seeds)")
    assert dashed.get_linestyle() == "--"
    assert list(dashed.get_ydata()) == pytest.approx([95, 95])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("blocks", "test accuracy [%]")


def test_two_points_at_one_place_are_both_drawn(make_run: MakeRun) -> None:
    paths = [
        make_run(name, blocks=blocks, accuracy=accuracy, summary={"group_hash": name})
        for name, blocks, accuracy in (("a", 2, 0.5), ("b", 2, 0.6), ("c", 4, 0.7))
    ]
    (bar,) = accuracy_by_blocks(groups(*paths)).axes[0].containers
    assert bar.lines[0].get_xydata().tolist() == [[2, 50], [2, 60], [4, 70]]


def test_one_number_of_blocks_gives_no_such_plot(make_run: MakeRun) -> None:
    assert kinds(make_run("1", "bp", blocks=1), make_run("2", "bll", blocks=4)) == []


def test_accuracy_by_layers(make_run: MakeRun) -> None:
    paths = [
        make_run(f"{name}-{hidden}", name, 1, 0.8 + hidden / 100, blocks=hidden + 1, options={"model.hidden": hidden})
        for name in ("bp", "al")
        for hidden in (2, 3)
    ]
    assert kinds(*paths) == ["table1-cpu-layers"]
    result = points(accuracy_by_layers(groups(*paths)).axes[0])
    expected = {3: (pytest.approx(82.0), 0), 4: (pytest.approx(83.0), 0)}
    assert result == {"BP": expected, "AL": expected}


def validation(n: int, accuracy: list[float | None]) -> dict[str, Any]:
    return {"event": "validation", "n": n, "seconds": 0.1, "accuracy": accuracy}


def test_learning_curves(make_run: MakeRun) -> None:
    paths = [
        make_run("p", "bp", blocks=2, rows=[validation(9, [None, 0.5]), validation(19, [None, 0.75])]),
        make_run("b1", "bll", 1, blocks=2, rows=[validation(9, [0.25, 0.5]), validation(19, [0.5, 0.5])]),
        make_run("b2", "bll", 2, blocks=2, rows=[validation(9, [0.75, 1.0]), validation(29, [0.5, 0.5])]),
        make_run("b3", "bll", 3, blocks=2, rows=[validation(9, [0.5, 0.75]), validation(19, [0.5, 0.5])]),
    ]
    figure = learning_curves(groups(*paths))
    whole, blocks = figure.axes
    assert lines(whole) == {"BP": [(9, 50), (19, 75)], "BLL": [(9, 75)]}  # what all seeds have
    band = whole.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(50), pytest.approx(100))
    assert [line.get_ydata().tolist() for line in blocks.lines] == [[50.0], [75.0]]
    assert whole.get_ylabel() == "validation accuracy [%]"
    assert kinds(*paths) == ["table1-cpu-curves"]


def test_associated_losses(make_run: MakeRun) -> None:
    def rows(scale: float) -> list[dict[str, Any]]:
        return [{"event": "train", "n": n, "seconds": 0.1, "associated": [scale / (n + 1), 2 * scale]} for n in (0, 10)]

    paths = [make_run("1", "al", 1, blocks=2, rows=rows(1)), make_run("2", "al", 2, blocks=2, rows=rows(3))]
    assert kinds(*paths) == ["table1-cpu-associated-loss"]
    (axis,) = associated_losses(groups(*paths)).axes
    low, high = (line.get_xydata().tolist() for line in axis.lines)
    assert low == [[0, 2], [10, pytest.approx(2 / 11)]]
    assert high == [[0, 4], [10, 4]]


def test_block_accuracies(make_run: MakeRun) -> None:
    paths = [
        make_run("p", "bp", accuracy=0.95, blocks=3),
        make_run("b1", "bll", 1, 0.9, blocks=3, summary={"block_accuracy": [0.5, None, 0.9]}),
        make_run("b2", "bll", 2, 0.8, blocks=3, summary={"block_accuracy": [0.7, None, 0.8]}),
    ]
    assert kinds(*paths) == ["table1-cpu-block-accuracy"]
    axis = block_accuracies(groups(*paths)).axes[0]
    half = pytest.approx(100 * np.std([0.5, 0.7], ddof=1))
    assert points(axis)["BLL"] == {
        1: (pytest.approx(60), half),
        3: (pytest.approx(85), pytest.approx(half.expected / 2)),
    }
    assert lines(axis)["BP (1 seed)"][0][1] == pytest.approx(95)


def test_distances_by_hand() -> None:
    """Centroids (0, 0), (3, 4) and (0, 4); the samples of the first lie at 1 from it, the others on theirs."""
    activations = np.array([[1.0, 0], [-1, 0], [3, 4], [3, 4], [0, 4]])
    result = distances(activations, np.array([0, 0, 5, 5, 7]))
    assert result == Distances(inter=pytest.approx((5 + 3 + 4) / 3), intra=pytest.approx(2 / 5))
    assert result.ratio == pytest.approx(10)


def with_activations(make_run: MakeRun) -> list[Path]:
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    return [
        make_run(
            f"{name}-{seed}",
            name,
            seed,
            blocks=2,
            activations=[rng.normal(size=(24, 5)) + k * labels[:, None] for k in (1, 2)],
            labels=labels,
        )
        for name in ("bp", "al")
        for seed in (1, 2)
    ]


def test_class_distances(make_run: MakeRun) -> None:
    paths = with_activations(make_run)
    assert kinds(*paths) == ["table1-cpu-distances", "table1-cpu-tsne"]
    axes = class_distances(groups(*paths)).axes
    for axis, name in zip(axes, ("inter", "intra", "ratio"), strict=True):
        for label, part in (("BP", paths[:2]), ("AL", paths[2:])):
            for k in (1, 2):
                runs = [read_run(path).activations for path in part]
                values = [getattr(distances(run.blocks[k - 1], run.labels), name) for run in runs if run is not None]
                expected = (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
                assert points(axis)[label][k] == expected


def test_embeddings_show_every_sample_of_the_first_seed(make_run: MakeRun) -> None:
    paths = with_activations(make_run)
    figure = layer_embeddings(groups(*paths))
    assert [axis.get_title() for axis in figure.axes] == ["block 1", "block 2"] * 2
    run = read_run(paths[2]).activations
    assert run is not None
    dots = figure.axes[3].collections[0]
    assert np.array_equal(dots.get_offsets(), embed(run.blocks[1]))
    assert [to_hex(c) for c in dots.get_facecolors()] == [to_hex(f"C{c}") for c in run.labels]


def test_layers_shown_reach_from_the_lowest_to_the_top() -> None:
    assert shown_layers(1) == [0]
    assert shown_layers(4) == [0, 1, 2, 3]
    assert shown_layers(20) == [0, 5, 10, 14, 19]


def test_inputs_come_before_the_blocks(make_run: MakeRun) -> None:
    (path,) = with_activations(make_run)[:1]
    kept = dict(np.load(path / "activations.npz"))
    np.savez(path / "activations.npz", **kept, inputs=kept["block_2"])
    figure = layer_embeddings(groups(path))
    assert [axis.get_title() for axis in figure.axes] == ["inputs", "block 1", "block 2"]
    assert np.array_equal(figure.axes[0].collections[0].get_offsets(), figure.axes[2].collections[0].get_offsets())
    ratios = points(class_distances(groups(path)).axes[2])["BP"]
    assert list(ratios) == [0, 1, 2]
    assert ratios[0][0] == ratios[2][0]


def test_accuracy_by_cost(make_run: MakeRun) -> None:
    def flops(extra: float) -> dict[str, Any]:
        return {"flops": {"network": 1, "training": 3, "extra": extra}}

    heads = {"algorithm.latent.convolutions": 2}
    paths = [
        make_run("p", "bp", accuracy=0.95, summary=flops(0)),
        make_run("b", "bll", accuracy=0.9, summary=flops(0.3)),
        make_run("c", "bll", 1, 0.92, options=heads, summary=flops(1.5)),
        make_run("d", "bll", 2, 0.94, options=heads, summary=flops(1.5)),
    ]
    assert kinds(*paths) == ["table1-cpu-flops"]
    axis = accuracy_by_cost(groups(*paths)).axes[0]
    dots = sorted((float(x), float(y)) for bar in axis.containers for x, y in bar.lines[0].get_xydata())
    assert dots == [pytest.approx((10, 90)), pytest.approx((50, 93))]
    texts = {text.get_text(): text.xy for text in axis.texts}
    assert texts["BLL convolutions=2"] == (pytest.approx(50), pytest.approx(93))
    assert len(texts) == 2
    assert next(y for _, y in lines(axis)["BP (1 seed)"]) == pytest.approx(95)


def test_accuracy_by_exit(make_run: MakeRun) -> None:
    def exits(*tests: float) -> dict[str, Any]:
        blocks = [
            {"block": k, "flops": 2e6 * k, "test_accuracy": value, "validation_accuracy": 0.1}
            for k, value in enumerate(tests, 1)
        ]
        return {"exits": blocks}

    paths = [
        make_run("p", "bp", blocks=2, summary={"exits": [{"block": 2, "flops": 3e6, "test_accuracy": 0.95}]}),
        make_run("b1", "bll", 1, blocks=2, summary=exits(0.5, 0.75)),
        make_run("b2", "bll", 2, blocks=2, summary=exits(0.75, 0.75)),
    ]
    assert kinds(*paths) == ["table1-cpu-exits"]
    axis = accuracy_by_exit(groups(*paths)).axes[0]
    half = pytest.approx(100 * np.std([0.5, 0.75], ddof=1))
    assert points(axis) == {"BP": {3: (95, 0)}, "BLL": {2: (62.5, half), 4: (75, 0)}}
    assert axis.get_ylabel() == "test accuracy [%]"


def test_one_exit_gives_no_plot(make_run: MakeRun) -> None:
    one = {"exits": [{"block": 4, "flops": 3e6, "test_accuracy": 0.95}]}
    assert kinds(make_run("p", "bp", summary=one), make_run("old", "bll")) == []


def test_labels_of_close_points_do_not_overlap(make_run: MakeRun) -> None:
    paths = [
        make_run(
            str(i),
            "bll",
            accuracy=0.9 + i / 10000,
            options={"algorithm.latent.convolutions": i},
            summary={"flops": {"training": 1, "extra": 1 + i / 1000}},
        )
        for i in range(6)
    ]
    figure = accuracy_by_cost(groups(*paths))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_colour_for_every_algorithm() -> None:
    known = [colour(name) for name in ("bp", "fa", "predsim", "al", "bll")]
    assert len(set(known)) == 5
    assert colour("mine") == colour("mine")
    assert colour("mine") not in known


def test_files_are_a_function_of_the_data(tmp_path: Path, make_run: MakeRun) -> None:
    result = groups(*by_blocks(make_run))
    for name in ("a", "b"):
        save(lambda: accuracy_by_blocks(result), tmp_path / name)
    for ending in ("png", "svg"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
