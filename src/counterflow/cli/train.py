"""The training program: runs and sweeps from a command line."""

import math
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback as HydraCallback
from hydra.types import RunMode
from omegaconf import DictConfig

from counterflow.cli.console import EXIT_SIGNAL, install_cli_logging
from counterflow.cli.errors import exit_now, exit_with_error, exit_with_usage_error
from counterflow.cli.hydra_app import job_name, run_hydra, validate
from counterflow.cli.sweep import Sweep
from counterflow.config import TrainConfig
from counterflow.engine.run_context import PreemptedError
from counterflow.metrics.callback import Callback, ProgressDisplay
from counterflow.metrics.run_dir import FinishedError
from counterflow.rank_info import RankInfo
from counterflow.signals import Signals
from counterflow.trainer.fit import FitResult, ProcessControl
from counterflow.trainer.trainer import Trainer


def run_job(config: TrainConfig, control: ProcessControl | None = None, *callbacks: Callback) -> FitResult:
    """Train ``config`` on the processes that the environment names. Errors are those of `Trainer.fit`."""
    trainer = Trainer(
        config.model,
        rule=config.algorithm,
        optimizer=config.optimizer,
        blocks=config.blocks,
        cut=config.model.cut,
        replicas=config.replicas,
        sync=config.sync,
        inner=config.topology.inner,
        seed=config.seed,
        schedule=config.schedule,
        device=config.device,
        engine=config.engine,
    )
    loop, run = config.train, config.run
    return trainer.fit(
        config.data,
        epochs=loop.epochs,
        steps=loop.steps,
        batch_size=loop.batch_size,
        microbatches=loop.microbatches,
        accumulate=loop.accumulate,
        evaluate_every=loop.evaluate_every,
        patience=loop.patience,
        evaluate_test=loop.test,
        log_every=loop.log_every,
        run_dir=run.dir or _new_run_dir(config),
        resume=run.resume,
        checkpoint=config.checkpoint,
        trace=config.trace,
        activations=run.activations,
        loggers=run.loggers,
        experiment=run.experiment,
        scale=config.scale,
        callbacks=[*([ProgressDisplay()] if run.display else []), *callbacks],
        control=control,
    )


class SweepGuard(HydraCallback):
    """Refuses a senseless sweep before hydra writes anything. Configured in ``conf/train.yaml``."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        experiments = [o for o in config.hydra.overrides.task if o.startswith("experiment=")]
        if RankInfo.from_env().size > 1:
            # Hydra would start every rank's sweep, and a failed job of one rank would leave the others waiting.
            exit_with_usage_error(
                "a sweep runs on one process: python launch/train.py .., whose results are those of many processes; "
                "hydra.mode=RUN makes it a single run"
            )
        if experiments and config.run.experiment is None:
            exit_with_usage_error(f"{experiments[0]}: one experiment a command, as each has a sweep of its own")


def main(seconds: float = math.inf) -> None:
    """Configure from the command line, and train; end the process with status 0 only if every run finished.

    A sweep ends after ``seconds``; the status is `EXIT_INCOMPLETE` if some of it is left. A wrong configuration is one
    line from the first process of each node. A failed run is one line from every rank that noticed.
    """
    install_cli_logging()
    signals = Signals()

    def run(config: TrainConfig, callback: Callback) -> None:
        run_job(config, ProcessControl(signals), callback)

    sweep = Sweep(run, time.monotonic() + seconds, signals=signals)

    def task(composed: DictConfig) -> None:
        try:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                name = job_name(HydraConfig.get().overrides.task)
                sweep.job(name, Path(HydraConfig.get().sweep.dir) / name, lambda: validate(composed, TrainConfig))
                return
            config, control = validate(composed, TrainConfig), ProcessControl(signals)
            if config.engine.recovery == "rank" and RankInfo.from_env().size > 1:
                from counterflow.recovery.supervisor import supervise  # opt-in: nothing of it on the main path

                # One directory for all processes that will be this rank.
                config = replace(config, run=replace(config.run, dir=config.run.dir or _new_run_dir(config)))
                restarted = supervise(signals, RankInfo.from_env().rank)  # returns in a process of its own
                control = ProcessControl(Signals(), restarted)
            run_job(config, control)
        except PreemptedError as stop:
            if RankInfo.from_env().is_main:
                name = signal.Signals(stop.signal).name
                print(
                    f"note: {name}: stopped after batch {stop.batches - 1}, with a checkpoint; run.resume=auto goes on",
                    file=sys.stderr,
                )
            exit_now(EXIT_SIGNAL + stop.signal)
        except FinishedError as error:
            info = RankInfo.from_env()
            if not info.restart_count and (control.restarted is None or not control.restarted.restart_count):
                exit_with_usage_error(error)
            if info.is_main:  # a rank was lost after the last file had been written
                print(f"note: {config.run.dir}: has finished", file=sys.stderr)
        except ValueError as error:
            exit_with_usage_error(error)
        except Exception as error:
            exit_with_error(error)

    try:
        run_hydra(task)
    except ValueError as error:
        exit_with_usage_error(error)
    if sweep.counts:
        print(sweep)
        exit_now(sweep.status)


def _new_run_dir(config: TrainConfig) -> str:
    return f"runs/{config.algorithm.name}-{config.model.name}-{config.data.name}-{_begin_time():%Y%m%d-%H%M%S}"


def _begin_time() -> datetime:
    """The start of this process; under torchrun, of torchrun: all that it restarts goes on in the same folder."""
    if RankInfo.from_env().run_id is not None:
        try:
            ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
            lines = Path("/proc/stat").read_text().splitlines()
            boot = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
            return datetime.fromtimestamp(boot + ticks / os.sysconf("SC_CLK_TCK"))
        except (OSError, StopIteration):  # not Linux
            pass
    return datetime.now()


if __name__ == "__main__":
    main()
