"""The numbers in the tables."""

from collections.abc import Callable
from math import nan
from pathlib import Path
from statistics import stdev

import pytest

from counterflow.report.document import markdown
from counterflow.report.groups import TEST, Comparison, compare
from counterflow.report.runs import read_run
from counterflow.report.tables import PUBLISHED, table

MakeRun = Callable[..., Path]


def cells(comparison: Comparison) -> list[dict[str, str]]:
    return table(comparison).to_dict("records")


def only(*paths: object) -> Comparison:
    (comparison,) = compare(map(read_run, paths))
    return comparison


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.01, 0.02, 0.06], [3.0, stdev([1.0, 2.0, 6.0]), 3]),
        ([0.01, 0.02, 0.06], [3.0, 7**0.5, 3]),  # n - 1
        ([None, 0.005], [0.5, nan, 1]),
        ([None], [nan, nan, 0]),
    ],
)
def test_mean_and_deviation(make_run: MakeRun, accuracies: list[float | None], expected: list[float]) -> None:
    comparison = only(*(make_run(str(i), seed=i, accuracy=value) for i, value in enumerate(accuracies)))
    assert TEST.of(comparison.groups).to_numpy().tolist() == [pytest.approx(expected, nan_ok=True)]


def test_mean_deviation_seeds_and_gap(make_run: MakeRun) -> None:
    comparison = only(
        make_run("p1", "bp", 1, 0.95, blocks=1, summary={"validation_accuracy": 0.94}),
        make_run("p2", "bp", 2, 0.93, blocks=1, summary={"validation_accuracy": 0.92}),
        make_run("b1", "bll", 1, 0.90, summary={"validation_accuracy": 0.91, "samples_per_second": 1500}),
        make_run("b2", "bll", 2, 0.91, summary={"samples_per_second": 2500}),
        make_run("b3", "bll", 3, 0.95, summary={"samples_per_second": 3500}),
    )
    bp, bll = cells(comparison)
    assert bp["algorithm"] == "BP"
    assert bp["test accuracy [%]"] == "94.00 ± 1.41"
    assert bp["test gap to BP [points]"] == ""
    assert bll["test accuracy [%]"] == "92.00 ± 2.65"
    assert bll["seeds"] == "3"
    assert bll["test gap to BP [points]"] == "-2.00"
    assert bll["validation accuracy [%]"] == "91.00 (of 1)"
    assert bll["validation gap to BP [points]"] == "-2.00"
    assert bll["samples/s"] == "2,500"
    assert bll["samples/s over BP's"] == "2.50"
    assert bll["parameters (effective + affiliated)"] == "1,000 + 200"


def test_one_seed_has_no_deviation_and_empty_columns_are_left_out(make_run: MakeRun) -> None:
    comparison = only(make_run("1", accuracy=0.5))
    assert cells(comparison) == [
        {
            "algorithm": "BLL",
            "model": "mlp",
            "data": "digits",
            "blocks": "4",
            "test accuracy [%]": "50.00",
            "seeds": "1",
            "parameters (effective + affiliated)": "1,000 + 200",
            "samples/s": "1,000",
        }
    ]


def test_a_run_that_did_not_test_has_no_test_accuracy(make_run: MakeRun) -> None:
    comparison = only(make_run("1", accuracy=None, summary={"validation_accuracy": 0.75}))
    (row,) = cells(comparison)
    assert row["validation accuracy [%]"] == "75.00"
    assert "test accuracy [%]" not in row


def test_options_that_differ_are_shown_with_their_keys(make_run: MakeRun) -> None:
    comparison = only(
        make_run("1", "bp", options={"optimizer.lr": 0.1}),
        make_run("2", "bll", options={"algorithm.latent.convolutions": 2}),
        make_run("3", "bll"),
    )
    bp, *bll = (row["options"] for row in cells(comparison))
    assert bp == "optimizer.lr=0.1"
    assert sorted(bll) == [
        "algorithm.latent.convolutions=0, optimizer.lr=0.001",
        "algorithm.latent.convolutions=2, optimizer.lr=0.001",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"options": {"model.width": 64}},
        {"options": {"data.limit": 100}},
        {"summary": {"steps": 600}},
        {"summary": {"scale": "full"}},
        {"summary": {"experiment": "fig3a"}},
    ],
)
def test_a_gap_is_only_to_the_same_network_data_budget_and_experiment(make_run: MakeRun, other: dict) -> None:
    paths = [make_run("1", "bp", **other), make_run("2", "bll")]
    rows = [row for comparison in compare(map(read_run, paths)) for row in cells(comparison)]
    assert not [row for row in rows if row.get("test gap to BP [points]") or row.get("samples/s over BP's")]


def test_the_nearest_backprop_counts_and_a_tie_does_not(make_run: MakeRun) -> None:
    near = make_run("1", "bp", accuracy=0.95)
    far = make_run("2", "bp", accuracy=0.5, options={"optimizer.lr": 0.1})
    assert cells(only(near, far, make_run("3", "bll", accuracy=0.9)))[-1]["test gap to BP [points]"] == "-5.00"
    lost = make_run("4", "bll", accuracy=0.9, options={"optimizer.lr": 0.2})
    assert "test gap to BP [points]" not in cells(only(near, far, lost))[-1]


def test_blocks_decide_between_equal_backprops(make_run: MakeRun) -> None:
    comparison = only(
        make_run("1", "bp", accuracy=0.5, blocks=1),
        make_run("2", "bp", accuracy=0.6, blocks=2),
        make_run("3", "bll", accuracy=0.4, blocks=2),
        make_run("4", "bll", accuracy=0.4, blocks=3),
    )
    assert [row["test gap to BP [points]"] for row in cells(comparison)] == ["", "", "-20.00", "-10.00"]


def test_speeds_are_compared_on_equal_machines_only(make_run: MakeRun) -> None:
    comparison = only(make_run("1", "bp"), make_run("2", "bll", summary={"hardware": "another processor"}))
    assert "samples/s over BP's" not in table(comparison)
    assert "test gap to BP [points]" in table(comparison)


def test_processes_are_shown_where_there_are_several(make_run: MakeRun) -> None:
    comparison = only(make_run("1"), make_run("2", seed=2, summary={"ranks": 4}))
    assert [row["processes"] for row in cells(comparison)] == ["1, 4"]


def test_extra_flops_are_a_share_of_training(make_run: MakeRun) -> None:
    comparison = only(make_run("1", summary={"flops": {"network": 1e6, "training": 3e6, "extra": 6e5}}))
    assert cells(comparison)[0]["extra FLOPs [%]"] == "20.0"


@pytest.mark.parametrize(
    ("scale", "header"), [("full", "published [%]"), ("cpu", "published for the full-size network [%]")]
)
def test_published_numbers_say_for_which_network_they_are(make_run: MakeRun, scale: str, header: str) -> None:
    options = {"model.name": "resnet18", "data.name": "fashion_mnist", "scale": scale}
    comparison = only(*(make_run(name, name, options=options) for name in ("bp", "bll")))
    assert [row[header] for row in cells(comparison)] == ["", "94.2"]


def test_published_numbers_have_sources() -> None:
    assert all(published.source and 0 < published.percent < 100 for published in PUBLISHED.values())


def test_a_second_look_at_test_data_is_marked(make_run: MakeRun) -> None:
    look = {"event": "test", "n": 29, "seconds": 0.5, "accuracy": [None, None, None, 0.9]}
    comparison = only(make_run("1", accuracy=0.9, rows=[look]))
    assert cells(comparison)[0]["test accuracy [%]"] == "90.00 †"


def test_markdown(make_run: MakeRun) -> None:
    text = markdown(table(only(make_run("1", options={"optimizer.lr": "a|b"}), make_run("2"))))
    header, rule, *rows = text.splitlines()
    assert header.startswith("| algorithm | model | data | blocks | options | test accuracy [%] |")
    assert rule.startswith("| --- | --- | --- | ---: | --- | ---: |")
    assert any("optimizer.lr=a\\|b" in row for row in rows)


def test_without_an_experiment_published_numbers_are_those_of_the_full_size(make_run: MakeRun) -> None:
    """``scale=full`` is the default, and chooses nothing where no preset has values to choose."""
    options = {"model.name": "resnet18", "data.name": "fashion_mnist", "scale": "full", "run.experiment": None}
    assert "published for the full-size network [%]" in table(only(make_run("1", options=options)))


def test_complete_sequences_have_a_column_where_there_are_some(make_run: MakeRun) -> None:
    paths = [make_run(str(seed), seed=seed, summary={"test_sequence_accuracy": 0.5 + seed / 10}) for seed in (1, 2)]
    assert cells(only(*paths))[0]["sequences right [%]"] == "65.00 ± 7.07"
    assert "sequences right [%]" not in cells(only(make_run("other")))[0]


def test_averaged_views_have_a_column_of_their_own(make_run: MakeRun) -> None:
    paths = [make_run(str(seed), seed=seed, summary={"test_tta_accuracy": 0.5 + seed / 10}) for seed in (1, 2)]
    assert cells(only(*paths))[0]["with test-time augmentation [%]"] == "65.00 ± 7.07"
    assert "with test-time augmentation [%]" not in cells(only(make_run("other")))[0]
