"""Reading of run directories, and refusals."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from counterflow.metrics import provenance
from counterflow.report.groups import compare, differing_options, group_by_config, labels
from counterflow.report.runs import find_runs, read_activations, read_run

MakeRun = Callable[..., Path]


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path, make_run: MakeRun) -> None:
    paths = [make_run("b"), make_run("a/1", seed=1), make_run("a/deep/2", seed=2)]
    finished, unfinished = find_runs([tmp_path / "runs", tmp_path / "runs" / "b"])
    assert finished == sorted(paths)
    assert unfinished == []


def test_a_run_without_a_summary_is_unfinished(tmp_path: Path, make_run: MakeRun) -> None:
    done, stopped = make_run("done"), make_run("stopped")
    (stopped / "summary.json").unlink()
    assert find_runs([tmp_path / "runs"]) == ([done], [stopped])


def test_paths_without_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no run \(no summary.json or metrics.jsonl at any depth\)"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(ValueError, match="nowhere: is no directory"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("algorithm", ..., "algorithm is missing"),
        ("seed", None, "seed is missing"),
        ("test_accuracy", ..., "test_accuracy is missing"),
        ("blocks", 4.5, "blocks=4.5: must be a whole number"),
        ("seed", True, "seed=True: must be a whole number"),
        ("test_accuracy", 97.5, "test_accuracy=97.5: must be between 0 and 1"),
        ("test_accuracy", float("nan"), "test_accuracy=nan: must be a number"),
        ("validation_accuracy", "high", "validation_accuracy=high: must be a number"),
        ("block_accuracy", 0.5, "block_accuracy=0.5: must be a list"),
        ("block_accuracy", [0.5, 2], "block_accuracy=2: must be between 0 and 1"),
        ("block_bits_by_position", [0.5], "block_bits_by_position=0.5: must be a list"),
        ("block_bits_by_position", [None, [2.5, "few"]], "block_bits_by_position=few: must be a number"),
        ("hardware", 7, "hardware=7: must be text"),
        ("flops", {"training": 0, "extra": 1}, "flops.training=0: must be greater than 0"),
        ("exits", [0.5], "exits=0.5: must be an object"),
        ("exits", [{"block": 1}], "exits.flops is missing"),
        ("exits", [{"block": 1, "flops": 9, "test_accuracy": 97}], "exits.test_accuracy=97: must be between 0 and 1"),
    ],
)
def test_a_damaged_summary_is_one_line(make_run: MakeRun, key: str, value: object, message: str) -> None:
    path = make_run("run", summary={key: value})
    with pytest.raises(ValueError, match=r"summary\.json: ") as caught:
        read_run(path)
    assert str(caught.value) == f"{path / 'summary.json'}: {message}"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("summary.json", '{"algorithm": "bll",\n', "line 2: is no JSON"),
        ("summary.json", "[]", "must be one JSON object"),
        ("metrics.jsonl", '{"event": "train", "n": 0}\n{"event"', "line 2: is no JSON"),
        ("metrics.jsonl", '{"event": "train"}\n', "line 1: must be an object with event and n"),
        ("config.yaml", "a: [", "is no YAML"),
        ("config.yaml", "- 1", "must hold named options"),
    ],
)
def test_damaged_files_are_named(make_run: MakeRun, file: str, text: str, message: str) -> None:
    path = make_run("run")
    (path / file).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path / file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.yaml", "metrics.jsonl"])
def test_missing_files_are_named(make_run: MakeRun, file: str) -> None:
    path = make_run("run")
    (path / file).unlink()
    with pytest.raises(ValueError, match=f"{file}: cannot be read"):
        read_run(path)


NEW = ("experiment", "scale", "config_hash", "group_hash", "torchvision_version", "python_version", "hardware", "flops")


def test_older_summaries_are_read(make_run: MakeRun) -> None:
    """A value that the summary lacks is taken from the configuration, or is None."""
    run = read_run(make_run("run", summary=dict.fromkeys((*NEW, "ranks", "cut", "validation_accuracy"), ...)))
    assert (run.summary["experiment"], run.summary["scale"]) == ("table1", "cpu")
    assert run.summary["hardware"] is None
    assert run.summary["extra_flops"] is None
    assert run.summary["layers"] is None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off"])
def test_damaged_activations_are_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "activations.npz").write_bytes(damage)
    with pytest.raises(ValueError, match=r"activations\.npz: must hold labels and block_1"):
        read_activations(tmp_path / "activations.npz")


def test_activations_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "activations.npz"
    assert read_activations(path) is None
    np.savez(path, labels=np.arange(3), block_1=np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"each \[M, d\]"):
        read_activations(path)
    np.savez(path, labels=np.zeros(2), block_1=np.zeros((2, 4)))
    with pytest.raises(ValueError, match="at least two classes"):
        read_activations(path)
    np.savez(path, labels=np.arange(2), block_1=np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match="must be finite"):
        read_activations(path)


def test_seeds_of_one_configuration_are_a_group(make_run: MakeRun) -> None:
    """Place and speed of a run make no difference; the options of its rule do."""
    same = [
        make_run("1", seed=3),
        make_run("2", seed=1, options={"engine.threads": 8, "engine.depth": 9, "engine.backend": "gloo"}),
        make_run("3", seed=2, options={"engine.timeout": 1.0, "run.dir": "elsewhere", "data.root": "/elsewhere"}),
    ]
    other = make_run("4", seed=1, options={"algorithm.latent.convolutions": 2})
    groups, repeated = group_by_config(map(read_run, [*same, other]))
    assert sorted([run.path.name for run in group.runs] for group in groups) == [["2", "3", "1"], ["4"]]
    assert repeated == []


def test_no_option_without_effect_tells_runs_apart(make_run: MakeRun) -> None:
    """The report once had a list of its own, which lacked the options of checkpoints, traces and recovery."""
    given = {"checkpoint.every": 5, "trace": True, "engine.recovery": "restart", "engine.replay": 3, "scale": "full"}
    hashed = [make_run("1"), make_run("2", seed=2, options=given)]
    groups, _ = group_by_config(map(read_run, hashed))
    assert [[run.path.name for run in group.runs] for group in groups] == [["1", "2"]]
    written = [
        make_run(name, options=options, summary={"group_hash": name}) for name, options in (("3", {}), ("4", given))
    ]
    groups, _ = group_by_config(map(read_run, written))
    assert differing_options(groups, per_algorithm=False) == [{}, {}]


def test_there_is_one_list_of_options_without_effect(make_run: MakeRun) -> None:
    path = make_run("1", options={"checkpoint.every": 5, "engine.replay": 3})
    expected = provenance.settings(OmegaConf.to_container(OmegaConf.load(path / "config.yaml")))
    assert expected.pop("seed") == 1
    assert read_run(path).settings == expected


def test_the_hash_of_a_run_comes_first(make_run: MakeRun) -> None:
    paths = [
        make_run("1", seed=1, summary={"group_hash": "a1"}),
        make_run("2", seed=2, summary={"group_hash": "a1"}, options={"model.width": 7}),
        make_run("3", seed=1, summary={"group_hash": "b2"}),
    ]
    groups, _ = group_by_config(map(read_run, paths))
    assert [[run.path.name for run in group.runs] for group in groups] == [["1", "2"], ["3"]]


def test_a_seed_counts_once(make_run: MakeRun) -> None:
    paths = [make_run("b", seed=1, accuracy=0.1), make_run("a", seed=1, accuracy=0.5), make_run("c", seed=2)]
    (group,), repeated = group_by_config(map(read_run, paths))
    assert [run.path.name for run in group.runs] == ["a", "c"]
    assert [run.path.name for run in repeated] == ["b"]


def test_labels_tell_groups_of_an_algorithm_apart(make_run: MakeRun) -> None:
    paths = [
        make_run("1", "bp", options={"optimizer.lr": 0.1}),
        make_run("2", "bll", options={"algorithm.latent.convolutions": 1}),
        make_run("3", "bll", options={"algorithm.latent.convolutions": 2}),
        make_run("4", "bll", options={"algorithm.latent.convolutions": 2}, summary={"group_hash": "0123456789"}),
    ]
    groups, _ = group_by_config(map(read_run, paths))
    names = dict(zip([group.runs[0].path.name for group in groups], labels(groups), strict=True))
    assert names["1"] == "BP"
    assert names["2"] == "BLL convolutions=1"
    assert names["4"] == "BLL convolutions=2 (012345)"
    assert len(set(names.values())) == 4


def test_experiments_and_scales_are_kept_apart(make_run: MakeRun) -> None:
    paths = [
        make_run("1"),
        make_run("2", summary={"scale": "full"}),
        make_run("3", summary={"experiment": "fig3a"}),
        make_run("4", summary={"experiment": ...}, options={"run.experiment": None}),
    ]
    result = [(c.experiment, c.scale) for c in compare(map(read_run, paths))]
    assert result == [("fig3a", "cpu"), ("table1", "cpu"), ("table1", "full"), (None, None)]


def test_the_report_loads_no_torch() -> None:
    code = "import sys, counterflow.report.cli; assert 'torch' not in sys.modules, 'torch is loaded'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_factory_writes_what_json_reads(make_run: MakeRun) -> None:
    assert json.loads((make_run("run", accuracy=0.25) / "summary.json").read_text())["test_accuracy"] == 0.25
