"""Weights & Biases: the metrics of a run, as a callback."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from counterflow.metrics.block_metrics import StepMetrics
from counterflow.metrics.callback import Callback, RunInfo

if TYPE_CHECKING:  # an extra; its import takes seconds
    import wandb

_LOGIN_TIMEOUT = 30
"""Seconds that wandb may wait for somebody to log in."""


class WandbLogger(Callback):
    """Logs every metric of every block, the configuration and the summary to Weights & Biases.

    Its files are in the run directory. A run that goes on from a checkpoint stays the same run there. With
    WANDB_MODE=offline nothing is sent.
    """

    def __init__(self, **options: Any) -> None:
        """``options`` are those of ``wandb.init``, such as ``project``."""
        self._options = options
        self._run: wandb.Run | None = None
        self._failed = True

    def on_start(self, run: RunInfo) -> None:
        import wandb

        self._run = wandb.init(
            **{
                "id": _run_id(run),
                "resume": "allow",
                "dir": run.run_dir,
                "config": _configuration(run),
                "settings": wandb.Settings(console="off", login_timeout=_LOGIN_TIMEOUT),
                **self._options,
            }
        )

    def on_step(self, row: StepMetrics) -> None:
        assert self._run is not None, "on_start comes first"
        self._run.log(row.scalars(), step=row.n)

    on_eval = on_step

    def on_end(self, summary: Mapping[str, Any]) -> None:
        assert self._run is not None, "on_start comes first"
        self._run.summary.update(dict(summary))
        self._failed = False

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(self._failed))


def _run_id(run: RunInfo) -> str:
    """Name of the run there: that of the run directory if the run goes on, else a new one."""
    new = uuid.uuid4().hex[:8]
    if run.run_dir is None:
        return new
    path = run.run_dir / "wandb" / "run-id"
    if run.start and path.exists():
        return path.read_text()
    path.parent.mkdir(exist_ok=True)
    path.write_text(new)
    return new


def _configuration(run: RunInfo) -> dict[str, Any]:
    path = Path(run.run_dir or "") / "config.yaml"
    return dict(yaml.safe_load(path.read_text())) if run.run_dir is not None else {}
