"""An exception in a callback of rank 0 leaves the engine as it is; every other one names block and batch."""

import pytest
from torch import Tensor

from counterflow.engine.factory import build_engine
from counterflow.engine.run_context import BlockError
from counterflow.metrics.callback import CallbackError
from counterflow.trainer.job_builder import load_job
from counterflow.transport import connect
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL, unrecorded

RUNS = {
    "bll": ("algorithm=bll",),
    "pipeline": ("algorithm=bp", "schedule=1f1b"),
    "naive": ("algorithm=bp", "schedule=naive"),
}


class Failing:
    """A callback that raises ``error`` at batch 5."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def should_log(self, n: int) -> bool:
        return True

    def on_step(self, block: int, n: int, metrics: dict[str, Tensor]) -> None:
        if n == 5:
            raise self.error

    def on_eval(self, block: int, n: int, split: str, metrics: dict[str, float]) -> None:
        pass


def run(overrides: tuple[str, ...], error: Exception) -> None:
    job = load_job(configured(*SMALL, *overrides))
    build_engine(job).run(unrecorded(connect(None, 0, 1, timeout=30), Failing(error)))


@pytest.mark.parametrize("name", RUNS)
def test_an_error_of_a_callback_is_passed_on_as_it_is(name: str) -> None:
    error = CallbackError("callback Failing.on_step: ZeroDivisionError: by zero")
    with pytest.raises(CallbackError) as raised:
        run(RUNS[name], error)
    assert raised.value is error


@pytest.mark.parametrize("name", RUNS)
def test_another_error_names_the_batch(name: str) -> None:
    with pytest.raises(BlockError, match=r"batch 5: ZeroDivisionError: by zero$") as raised:
        run(RUNS[name], ZeroDivisionError("by zero"))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
