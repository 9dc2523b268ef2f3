"""``counterflow export``, ``predict`` and ``evaluate`` on the run of a small network."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from counterflow.cli import evaluate, export, predict
from counterflow.config import DataConfig
from counterflow.data.builtin import digits
from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def run(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("commands") / "run"
    options = ("blocks=3", "data.test_views=2", "data.flip=true", "train.steps=30", "train.evaluate_every=0")
    return folder, summary_of(pool, 1, *options, directory=folder)


def test_evaluate_finds_what_the_run_reported(
    run: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, summary = run
    assert evaluate.main([str(folder), "data.test_views=2", "--json", "--batch-size", "100"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "samples": 360,
        "accuracy": summary["test_accuracy"],
        "tta_accuracy": summary["test_tta_accuracy"],
    }
    blocks = summary["block_accuracy"]
    assert isinstance(blocks, list)
    assert evaluate.main([str(folder), "--blocks=1", "data.test_views=1"]) == 0
    assert capsys.readouterr().out == f"samples 360\naccuracy {blocks[0]}\n"


def test_predict_labels_every_row(run: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    folder, summary = run
    test = digits(DataConfig(name="digits")).test
    assert test is not None
    np.save(tmp_path / "x.npy", test.inputs[:, 0].numpy())
    out = tmp_path / "out.csv"
    assert predict.main([str(folder), str(tmp_path / "x.npy"), "--out", str(out), "--batch-size", "7"]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["input"] for row in rows] == [f"{tmp_path}/x.npy[{index}]" for index in range(360)]
    right = [int(row["label"]) == label for row, label in zip(rows, test.labels.tolist(), strict=True)]
    assert sum(right) / 360 == summary["test_accuracy"]
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_predict_goes_on_after_bad_files(
    run: tuple[Path, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert predict.main([str(run[0]), str(tmp_path), "--format", "jsonl"]) == 1
    output = capsys.readouterr()
    (line,) = output.out.splitlines()
    assert json.loads(line)["input"] == str(tmp_path / "good.png")
    (note,) = output.err.splitlines()
    assert note.startswith(f"note: left out: {tmp_path}/bad.png: cannot be read: ")


def test_evaluate_reads_folders_image_by_image(
    run: tuple[Path, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = digits(DataConfig(name="digits")).test
    assert test is not None
    for index in range(20):
        path = tmp_path / "test" / str(int(test.labels[index])) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.inputs[index, 0].numpy()).save(path)
    (tmp_path / "test/7/bad.png").parent.mkdir(exist_ok=True)
    (tmp_path / "test/7/bad.png").write_bytes(b"no image")
    (tmp_path / "test/eleven").mkdir()
    status = evaluate.main([str(run[0]), "data=image_folder", f"data.root={tmp_path}"])
    output = capsys.readouterr()
    assert status == 1
    assert output.out.startswith("samples 20\naccuracy ")
    assert [line.split(":")[2].strip() for line in output.err.splitlines()] == [
        f"{tmp_path}/test/7/bad.png",
        f"{tmp_path}/test/eleven",
    ]


@pytest.mark.parametrize(
    ("main", "arguments", "error"),
    [
        (export.main, ["missing"], "run=missing: holds no finished run: it has no model.json"),
        (predict.main, ["missing", "x.png"], "run=missing: holds no finished run: it has no model.json"),
        (evaluate.main, ["RUN", "seed=1"], "seed=1: allowed are data=NAME and data.KEY=VALUE"),
        (evaluate.main, ["RUN", "data=reverse"], "data=reverse: samples are ('torch.int64', 10): must be"),
        (evaluate.main, ["RUN", "--blocks=4"], "blocks=4: allowed are 1, 2, 3"),
        (predict.main, ["RUN", "x.png", "--batch-size=0"], "argument --batch-size: 0: must be a whole number"),
        (export.main, ["RUN", "--out=/no/such/folder/x"], "/no/such/folder"),
    ],
)
def test_wrong_arguments_are_one_line(
    run: tuple[Path, dict[str, object]],
    capsys: pytest.CaptureFixture[str],
    main: Main,
    arguments: list[str],
    error: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(run[0]) if argument == "RUN" else argument for argument in arguments])
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert not output.out
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert error in line


def test_export_says_what_it_checked(run: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(run[0]), "--format=safetensors"]) == 0
    assert capsys.readouterr().out == f"{run[0]}/network.safetensors: 18 tensors\n"


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same(run: tuple[Path, dict[str, object]]) -> None:
    program = (
        "import counterflow as cf, sys; from counterflow.data.builtin import digits; test = digits(None).test;"
        "print(float((cf.load(sys.argv[1])(test.inputs).argmax(-1) == test.labels).double().mean()))"
    )
    command = [sys.executable, "-c", program, str(run[0])]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
    assert float(output) == run[1]["test_accuracy"]
