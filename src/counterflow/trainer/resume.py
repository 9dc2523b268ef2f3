"""The start of a run: in which folder, and there anew or from a checkpoint."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from counterflow.checkpoint import CheckpointDirectory, Manifest
from counterflow.checkpoint.directory import NAME, CorruptCheckpointError, load
from counterflow.config import PIPELINES, TrainConfig
from counterflow.engine.job import Job
from counterflow.metrics import provenance
from counterflow.metrics.run_dir import FinishedError, Found, InUseError, RunDirectory, config_diff

CHECKPOINTS = "checkpoints"
"""In a run directory."""


@dataclass(frozen=True)
class ResumePoint:
    directory: RunDirectory | None = None
    """None for a run that writes nothing."""
    checkpoint: Path | None = None
    """The folder of the checkpoint that the run goes on from; None if it begins anew."""
    batches: int = 0
    """Training batches before."""
    cut: Sequence[int] | None = None
    """Layers of every block before."""


def open_run_dir(job: Job, config: TrainConfig, log: Callable[[str], None], alone: bool = True) -> ResumePoint:
    """Make or open the run directory ``config.run.dir``, as ``run.resume`` says.

    Args:
        job: The run.
        config: Its description.
        log: Called with a line about each thing that was found.
        alone: No other process of the run is at work in the directory, or writes checkpoints.

    Raises:
        FinishedError: The directory holds this run, and it has finished.
        InUseError: Another process writes it.
        ValueError: It holds another run, or a checkpoint is of another configuration.
    """
    path = Path(config.run.dir or "")
    directory = RunDirectory(path, config)
    found, resume = directory.found, config.run.resume
    checkpoints = CheckpointDirectory(path / CHECKPOINTS)
    try:
        if found is Found.RUNNING:
            raise InUseError(f"run.dir={path}: another process writes it")
        if found is Found.FINISHED:
            raise FinishedError(f"run.dir={path}: already holds a finished run, choose another one or remove it")
        if found is Found.INTERRUPTED and resume == "never":
            raise ValueError(f"run.dir={path}: already holds a run, which run.resume=auto would go on with")
        begin = None if resume in ("auto", "never") else _named(resume, path, job, config, log)
        if resume != "never" and (own := checkpoints.latest(job.plan.batches, log)) is not None:
            begin = _checked(own, job, config, log)
        batches = begin[1].batches if begin is not None else 0
        directory.begin(batches)
        if alone:
            checkpoints.forget_after(batches)
    except BaseException:
        directory.close()
        raise
    if begin is None:
        if found is Found.INTERRUPTED:
            log(f"{path}: was interrupted before its first checkpoint, begins anew")
        return ResumePoint(directory)
    folder, manifest = begin
    log(f"{path}: goes on after batch {batches - 1} from {folder}")
    return ResumePoint(directory, folder, batches, manifest.cut)


def _named(resume: str, path: Path, job: Job, config: TrainConfig, log: Callable[[str], None]) -> tuple[Path, Manifest]:
    """The checkpoint that ``run.resume=PATH`` names."""
    folder = Path(resume)
    if folder.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"run.resume={resume}: is in run.dir={path}, allowed there are auto, never")
    found = None
    if (folder / NAME).exists():
        try:
            found = folder, load(folder)
        except CorruptCheckpointError as error:
            raise ValueError(f"run.resume={resume}: is no whole checkpoint ({error})") from error
    elif (folder / CHECKPOINTS).is_dir():
        found = CheckpointDirectory(folder / CHECKPOINTS).latest(job.plan.batches, log)
    if found is None:
        raise ValueError(
            f"run.resume={resume}: allowed are auto, never, the folder of a checkpoint or of a run that has one"
        )
    return _checked(found, job, config, log)


def _checked(
    found: tuple[Path, Manifest], job: Job, config: TrainConfig, log: Callable[[str], None]
) -> tuple[Path, Manifest]:
    """``found``. ``ValueError`` where ``job`` would not end with the bits of the run that wrote it."""
    folder, manifest = found
    here = json.loads(json.dumps(identity(job, config)))
    if manifest.identity != here:
        raise ValueError(f"run.resume: {folder} is of another configuration: {config_diff(manifest.identity, here)}")
    if manifest.batches >= job.plan.batches:
        raise ValueError(f"run.resume: {folder} is of the end of a run, nothing is left of {job.plan.batches} batches")
    for name, now in provenance.versions(job.device).items():
        before = manifest.versions.get(name)
        if before != now:
            log(f"{folder} was computed with {name} {before}, here is {now}: numbers may be rounded otherwise")
    return found


def identity(job: Job, config: TrainConfig) -> Mapping[str, Any]:
    """Everything that the result of ``job`` depends on, by key: the value in use where a key may be ``auto``."""
    used: dict[str, Any] = {
        "engine.threads": torch.get_num_threads(),
        "engine.precision": job.runtime.precision,
        "device": job.device.type,
        "schedule": job.schedule,
        "data.root": _digest(job),
    }
    if job.schedule in PIPELINES:  # gradients of micro-batches add up differently on one process and on several
        used["ranks"] = job.topology.ranks
    return {**provenance.settings(config), **used}


def _digest(job: Job) -> str:
    """Digest of the labels in their order, a fast test that two data sets are equal."""
    train = job.batches.dataset.train
    sha = hashlib.sha256(f"{list(train.inputs.shape)}".encode())
    sha.update(train.labels.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
