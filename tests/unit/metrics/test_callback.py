from pathlib import Path
from typing import Any

import pytest

from counterflow.cli.train import run_job
from counterflow.engine.run_context import BlockError
from counterflow.metrics.callback import Callback, CallbackError, ProgressDisplay, RunInfo, notify
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL

CALLS: tuple[tuple[Any, ...], ...] = (
    ("on_start", RunInfo((), 10, 32, (0,))),
    ("on_step", None),
    ("on_eval", None),
    ("on_end", {}),
    ("close",),
)


class Recorder(Callback):
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    def on_end(self, summary: object) -> None:
        self.calls.append(self.name)


class Broken(Callback):
    def on_end(self, summary: object) -> None:
        raise ZeroDivisionError("by zero")


def test_what_is_not_overridden_does_nothing() -> None:
    for call in CALLS:
        notify([Callback()], *call)


def test_callbacks_are_called_in_their_order() -> None:
    calls: list[str] = []
    notify([Recorder("a", calls), Recorder("b", calls)], "on_end", {})
    assert calls == ["a", "b"]


def test_an_exception_names_the_callback() -> None:
    calls: list[str] = []
    with pytest.raises(CallbackError, match=r"^callback Broken\.on_end: ZeroDivisionError: by zero$") as error:
        notify([Recorder("a", calls), Broken(), Recorder("b", calls)], "on_end", {})
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert calls == ["a"]


@pytest.mark.parametrize("method", ["on_start", "on_step", "on_eval", "on_end"])
def test_an_exception_ends_the_run_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """On the thread of the reports too, long before the last batch."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(ProgressDisplay, method, broken)
    steps = "train.steps=100000" if method in ("on_step", "on_eval") else "train.steps=12"
    named = rf"callback ProgressDisplay\.{method}: ZeroDivisionError: by zero$"
    with pytest.raises((CallbackError, BlockError), match=named):
        run_job(configured(*SMALL, "train.epochs=9999", steps, "run.display=true", f"run.dir={tmp_path / 'run'}"))
