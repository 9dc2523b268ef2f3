import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from counterflow.composition import configure
from counterflow.config import TrainConfig
from counterflow.metrics.files import RunDirectory, git_commit
from counterflow.metrics.record import Record, Row
from processes import CONF


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return configure(CONF, ["seed=17", "model=cnn", "model.cut=[1,2,3,1]", "algorithm.feedback.lr_scale=0.5"])


def row(n: int, event: str = "train") -> Row:
    figures = [{"accuracy": 0.25 + n / 64}, {"accuracy": 0.5 + n / 64, "feedback_loss": 1.5}]
    records = [Record(event, n, block, 0, f, float(n), 0.5) for block, f in enumerate(figures, 1)]
    return Row(event, n, records, {"free_energy": 4.0 - n / 64} if event == "train" else {})


def test_rows_become_lines_at_once(tmp_path: Path, config: TrainConfig) -> None:
    """Whoever follows the file sees a row before the run ends."""
    with RunDirectory(tmp_path / "run", config) as directory:
        for n in (0, 4):
            directory.write(row(n))
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        directory.write(row(4, "test"))
    assert [json.loads(line)["n"] for line in lines] == [0, 4]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(r.to_json()) for r in (row(0), row(4), row(4, "test"))]


def test_every_figure_becomes_a_curve(tmp_path: Path, config: TrainConfig) -> None:
    with RunDirectory(tmp_path, config) as directory:
        for n in (0, 4):
            directory.write(row(n))
        directory.write(row(4, "test"))
    events = EventAccumulator(str(tmp_path)).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves == {
        "train/free_energy": [(0, 4.0), (4, 3.9375)],
        "train/accuracy/block1": [(0, 0.25), (4, 0.3125)],
        "train/accuracy/block2": [(0, 0.5), (4, 0.5625)],
        "train/feedback_loss/block2": [(0, 1.5), (4, 1.5)],
        "test/accuracy/block1": [(4, 0.3125)],
        "test/accuracy/block2": [(4, 0.5625)],
        "test/feedback_loss/block2": [(4, 1.5)],
    }


def test_the_configuration_is_kept_in_full(tmp_path: Path, config: TrainConfig) -> None:
    with RunDirectory(tmp_path, config):
        pass
    kept = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert isinstance(kept, dict)
    assert kept == OmegaConf.to_container(OmegaConf.structured(config))
    assert (kept["seed"], kept["model"]["cut"], kept["algorithm"]["feedback"]["lr_scale"]) == (17, [1, 2, 3, 1], 0.5)
    assert kept["engine"]["lag"] == 2


def test_the_summary(tmp_path: Path, config: TrainConfig) -> None:
    summary = {"test_accuracy": 0.1 + 0.2, "block_accuracy": [0.5, 0.75], "git_commit": None}
    with RunDirectory(tmp_path, config) as directory:
        assert not (tmp_path / "summary.json").exists()
        directory.summarise(summary)
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == summary
    assert text.endswith("}\n")


def test_folders_are_made_and_empty_ones_taken(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    for path in (tmp_path / "a" / "b" / "c", tmp_path / "empty"):
        with RunDirectory(path, config) as directory:
            assert directory.path == path
        assert (path / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "empty" / "notes.txt").read_text() == "mine"


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path, config: TrainConfig) -> None:
    with RunDirectory(tmp_path, config) as directory:
        directory.write(row(0))
        directory.summarise({"seed": 17})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"^{re.escape(f'run.dir={tmp_path}: already holds a run')}[^\n]*$"):
        RunDirectory(tmp_path, configure(CONF, ["seed=18"]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"^{re.escape(f'run.dir={path}: ')}[^\n]+$"):
            RunDirectory(path, config)


def test_the_commit_is_that_of_the_source_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = git_commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found)
    if (CONF.parent / ".git").exists():
        assert found is not None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None
