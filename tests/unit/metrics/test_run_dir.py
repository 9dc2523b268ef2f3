import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig
from counterflow.metrics.block_metrics import BlockMetrics, StepMetrics
from counterflow.metrics.run_dir import Found, InUseError, RunDirectory


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return load_config(["seed=17", "model=cnn", "model.cut=[1,2,3,1]", "algorithm.feedback.lr_scale=0.5"])


def begun(path: Path, config: TrainConfig, batches: int = 0) -> RunDirectory:
    directory = RunDirectory(path, config)
    directory.begin(batches)
    return directory


def look(path: Path, config: TrainConfig) -> Found:
    with RunDirectory(path, config) as directory:
        return directory.found


def refuses(path: Path, config: TrainConfig) -> None:
    with pytest.raises(InUseError, match=re.escape(f"run.dir={path}: another process came first")):
        begun(path, config)


def row(n: int, event: str = "train") -> StepMetrics:
    figures = [{"accuracy": 0.25 + n / 64}, {"accuracy": 0.5 + n / 64, "feedback_loss": 1.5}]
    records = [BlockMetrics(event, n, block, 0, f, float(n), 0.5) for block, f in enumerate(figures, 1)]
    return StepMetrics(event, n, records, {"free_energy": 4.0 - n / 64} if event == "train" else {})


def test_rows_become_lines_at_once(tmp_path: Path, config: TrainConfig) -> None:
    """A reader of the file sees a row before the run ends."""
    with begun(tmp_path / "run", config) as directory:
        for n in (0, 4):
            directory.write(row(n))
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        directory.write(row(4, "test"))
    assert [json.loads(line)["n"] for line in lines] == [0, 4]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(r.to_json()) for r in (row(0), row(4), row(4, "test"))]


def test_the_configuration_is_kept_in_full(tmp_path: Path, config: TrainConfig) -> None:
    with begun(tmp_path, config):
        pass
    kept = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert isinstance(kept, dict)
    assert kept == OmegaConf.to_container(OmegaConf.structured(config))
    assert (kept["seed"], kept["model"]["cut"], kept["algorithm"]["feedback"]["lr_scale"]) == (17, [1, 2, 3, 1], 0.5)
    assert kept["engine"]["lag"] == 2


def test_the_summary(tmp_path: Path, config: TrainConfig) -> None:
    summary = {"test_accuracy": 0.1 + 0.2, "block_accuracy": [0.5, 0.75], "git_commit": None}
    with begun(tmp_path, config) as directory:
        assert not (tmp_path / "summary.json").exists()
        directory.finish(summary)
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == summary
    assert text.endswith("}\n")


def test_folders_are_made_and_empty_ones_taken(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    for path in (tmp_path / "a" / "b" / "c", tmp_path / "empty"):
        with begun(path, config) as directory:
            assert directory.path == path
        assert (path / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "empty" / "notes.txt").read_text() == "mine"


def test_a_finished_run_is_left_alone(tmp_path: Path, config: TrainConfig) -> None:
    with begun(tmp_path, config) as directory:
        directory.write(row(0))
        directory.finish({"seed": 17})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refuses(tmp_path, config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_run_is_begun_anew_and_what_is_not_its_own_stays(tmp_path: Path, config: TrainConfig) -> None:
    with begun(tmp_path, config) as directory:
        directory.write(row(0))
    (tmp_path / "notes.txt").write_text("mine")
    assert look(tmp_path, config) is Found.INTERRUPTED
    with begun(tmp_path, config) as directory:
        directory.write(row(4))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["n"] == 4
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_in_the_making_is_left_to_who_makes_it(tmp_path: Path, config: TrainConfig) -> None:
    with begun(tmp_path, config) as directory:
        directory.write(row(0))
        assert look(tmp_path, config) is Found.RUNNING
        refuses(tmp_path, config)
        directory.write(row(4))
        directory.finish({})
    assert look(tmp_path, config) is Found.FINISHED
    refuses(tmp_path, config)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_nothing_is_found_where_no_run_is(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert look(tmp_path, config) is Found.NOTHING
    assert look(tmp_path / "none", config) is Found.NOTHING
    (tmp_path / "metrics.jsonl").touch()
    assert look(tmp_path, config) is Found.NOTHING, "a process that ended before it wrote anything"


def test_a_run_of_another_configuration_is_refused_by_what_differs(tmp_path: Path, config: TrainConfig) -> None:
    with begun(tmp_path, config) as directory:
        directory.finish({})
    other = load_config(["model=cnn", "model.cut=[1,2,3,1]", "algorithm.feedback.lr_scale=0.5", "engine.depth=7"])
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        look(tmp_path, other)
    assert str(error.value) == f"run.dir={tmp_path}: holds a run of another configuration: seed=17 there, 1 here"


@pytest.mark.parametrize("content", [None, "a: [", "just text"])
def test_a_run_without_a_configuration_is_refused(tmp_path: Path, config: TrainConfig, content: str | None) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(f'run.dir={tmp_path}: holds a run ')}[^\n]+$"):
        look(tmp_path, config)


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=f"^{re.escape(f'run.dir={path}: ')}[^\n]+$"):
            begun(path, config)


def test_what_came_after_the_cut_is_forgotten(tmp_path: Path, config: TrainConfig) -> None:
    with begun(tmp_path, config) as directory:
        for n in (0, 4, 8):
            directory.write(row(n))
        directory.write(row(8, "test"))
    with begun(tmp_path, config, batches=5) as directory:
        assert directory.seconds == 4.0
        directory.write(row(6))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 4, 6]


@pytest.mark.parametrize("rest", [b'{"event": "train", "n": 2, "sec', b"\0\0\0\0", b"[1]\n", b"{}\n", b"\xff\n"])
def test_a_row_that_was_not_written_to_its_end_is_forgotten(tmp_path: Path, config: TrainConfig, rest: bytes) -> None:
    with begun(tmp_path, config) as directory:
        directory.write(row(0))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + rest)
    with begun(tmp_path, config, batches=5):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_looking_writes_nothing(tmp_path: Path, config: TrainConfig) -> None:
    for path in (tmp_path / "none", tmp_path):
        assert look(path, config) is Found.NOTHING
    assert not list(tmp_path.iterdir())


def test_what_was_found_stays_so_until_it_is_closed(tmp_path: Path, config: TrainConfig) -> None:
    with begun(tmp_path, config) as directory:
        directory.write(row(0))
    with RunDirectory(tmp_path, config) as directory:
        assert directory.found is Found.INTERRUPTED
        assert look(tmp_path, config) is Found.RUNNING
        directory.begin(0)
    assert look(tmp_path, config) is Found.INTERRUPTED


def test_a_process_that_came_in_between_is_noticed(tmp_path: Path, config: TrainConfig) -> None:
    with RunDirectory(tmp_path, config) as directory:
        with begun(tmp_path, config), pytest.raises(InUseError, match="another process came first"):
            directory.begin(0)
        with begun(tmp_path, config) as other:
            other.finish({})
        with pytest.raises(InUseError, match="another process came first"):
            directory.begin(0)


def test_a_plain_mapping_is_a_configuration_too(tmp_path: Path) -> None:
    config = {"rule": {"name": "mine", "sizes": [1, 2]}, "seed": 3, "run": {"dir": "here"}}
    with RunDirectory(tmp_path, config) as directory:
        directory.begin(0)
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == config
    same = {**config, "rule": {"name": "mine", "sizes": (1, 2)}, "run": {"dir": "there"}}
    with RunDirectory(tmp_path, same) as directory:
        assert directory.found is Found.INTERRUPTED
    with pytest.raises(ValueError, match=r"another configuration: seed=3 there, 4 here$"):
        RunDirectory(tmp_path, {**config, "seed": 4})


class Full:
    """Disk that is full after some bytes, until there is room."""

    def __init__(self, file: Any, room: int) -> None:
        self.file = file
        self.room = room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = content[: self.room]
        self.room -= len(taken)
        written: int = self.file.write(taken)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_rows_wait_for_room_on_the_disk(tmp_path: Path, config: TrainConfig) -> None:
    with begun(tmp_path, config) as directory:
        disk = directory._metrics = Full(directory._metrics, 100)  # type: ignore[assignment]
        for n in (0, 4):
            with pytest.raises(OSError, match="No space left on device"):
                directory.write(row(n))
        with pytest.raises(OSError, match="No space left on device"):
            directory.finish({})
        assert not (tmp_path / "summary.json").exists()
        disk.room = 10**6
        directory.write(row(8))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(row(n).to_json()) for n in (0, 4, 8)]
