"""Loggers by name: the same values in all of them, and nothing imported that was not asked for."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from counterflow.config import RunConfig
from counterflow.metrics import loggers
from counterflow.metrics.callback import RunInfo
from tests.unit.metrics.test_tensorboard import row


def log(name: str, run_dir: Path, batches: list[int], start: int = 0) -> None:
    (run_dir / "config.yaml").write_text("model:\n  width: 3\n")
    logger = loggers.make_logger(name)
    logger.on_start(RunInfo((), 100, 32, (0, 0), start, 0.0, run_dir))
    for n in batches:
        logger.on_step(row(n))
    logger.on_eval(row(batches[-1], "validation"))
    logger.on_eval(row(batches[-1], "test"))
    logger.on_end({"test_accuracy": 0.75, "block_accuracy": [0.5, 0.75]})
    logger.close()


def records(run_dir: Path, runs: int) -> list[Record]:
    """Records that wandb would send of so many runs. Its process writes the end of a file some time after the run."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [record for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")) for record in _scan(path)]
        if sum(record.WhichOneof("record_type") == "exit" for record in found) == runs:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no {runs} whole runs in {run_dir}")


def _scan(path: Path) -> Iterator[Record]:
    store = DataStore()
    try:
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            yield Record.FromString(data)
    # Several types of exceptions say that the rest is still to be written.
    except Exception:
        return


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.usefixtures("offline")
def test_wandb_gets_the_values_of_tensorboard(tmp_path: Path) -> None:
    for name in ("tensorboard", "wandb"):
        log(name, tmp_path, [0, 4])
    events = EventAccumulator(str(tmp_path)).Reload()
    expected = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    found: dict[tuple[str, int], Any] = {}
    summary: dict[str, Any] = {}
    for record in records(tmp_path, 1):
        values = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        found |= {(name, values["_step"]): value for name, value in values.items() if not name.startswith("_")}
        summary |= {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
    assert found == expected
    assert summary["test_accuracy"] == 0.75
    assert summary["block_accuracy"] == [0.5, 0.75]


@pytest.mark.usefixtures("offline")
def test_a_run_that_goes_on_stays_the_same_run(tmp_path: Path) -> None:
    def ids(runs: int) -> set[str]:  # folders of one second have no order
        return {record.run.run_id for record in records(tmp_path, runs) if record.run.run_id}

    log("wandb", tmp_path, [0])
    log("wandb", tmp_path, [4], start=3)
    assert len(ids(2)) == 1
    log("wandb", tmp_path, [0])
    assert len(ids(3)) == 2, "a run that begins anew is another one"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["tensorboard", "mlflow"], "run.loggers=mlflow: allowed are tensorboard, wandb"),
        (["wandb", "wandb"], "run.loggers=['wandb', 'wandb']: must name each logger once"),
    ],
)
def test_other_names_are_refused(values: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        RunConfig(loggers=values)
    assert str(error.value) == message


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "wandb":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(loggers, "version", version)
    loggers.check_installed(["tensorboard"])
    line = r"^run.loggers: wandb is not installed, allowed after pip install 'counterflow\[wandb\]'$"
    with pytest.raises(ValueError, match=line):
        loggers.check_installed(["tensorboard", "wandb"])


RUN = """
import sys, torch, counterflow as cf
data = torch.randn(64, 3), torch.arange(64) % 2
result = cf.Trainer(torch.nn.Sequential(torch.nn.Linear(3, 2)), blocks=1).fit(data, run_dir=sys.argv[1], loggers=[])
print({"tensorboard", "torch.utils.tensorboard", "wandb"} & set(sys.modules))
"""


def test_no_logger_is_imported_or_writes_unless_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert found.stdout == "set()\n"
    assert not list(tmp_path.rglob("events.*"))
