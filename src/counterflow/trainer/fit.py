"""A whole run as one rank sees it: the engine, its reports, and its result, the weights and the summary."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from counterflow.checkpoint import BestWeights, BlockWritten, CheckpointDirectory, CheckpointWriter
from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.checksum import sha256
from counterflow.config import TrainConfig
from counterflow.data.batch_loader import Field
from counterflow.data.items import Items
from counterflow.data.reader_pool import ReaderPool
from counterflow.engine.factory import build_engine, choose_partition
from counterflow.engine.job import Job
from counterflow.engine.run_context import BlockError, PreemptedError, RankResult, RunContext, WaitTimes
from counterflow.inference.model_files import BEST, ModelFiles, write_tensors
from counterflow.metrics.block_metrics import BlockMetrics, MetricsCallback
from counterflow.metrics.callback import Callback
from counterflow.metrics.loggers import make_logger
from counterflow.metrics.provenance import digest
from counterflow.metrics.run_dir import FinishedError
from counterflow.models.initial_weights import load_initial_weights
from counterflow.models.partition import is_outline
from counterflow.rank_info import RankInfo
from counterflow.schedule.pipeline_schedules import owned_blocks
from counterflow.signals import Signals
from counterflow.topology import Piece
from counterflow.trainer.activations_file import save_activations
from counterflow.trainer.early_stopping import EarlyEnd
from counterflow.trainer.gathering import gather_tensors
from counterflow.trainer.job_builder import materialized
from counterflow.trainer.rank0 import CHECKPOINTS, EVALUATED, Rank0Services, ResumePoint, open_run_dir
from counterflow.trainer.remote_checkpoints import CheckpointServer, RemoteStorage
from counterflow.trainer.summary import describe, original_state, summarize
from counterflow.transport import Communicator, connect, rendezvous
from counterflow.transport.rendezvous import interfaces
from counterflow.transport.shared_secret import read_secret

if TYPE_CHECKING:
    from counterflow.recovery.supervisor import SupervisedRank

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """Summary on every rank, weights on rank 0."""

    summary: Mapping[str, Any]
    """The content of ``summary.json``."""
    is_main: bool
    """This is rank 0, which has the weights."""
    _state: Mapping[str, Tensor] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """sha256 over all parameters and buffers: equal fingerprints mean equal bits."""
        return str(self.summary["fingerprint"])

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy of the network on the test data; None if there was none."""
        return self.summary["test_accuracy"]  # type: ignore[no-any-return]

    @property
    def validation_accuracy(self) -> float | None:
        """Accuracy of the network on held-out training data; None if there was none."""
        return self.summary["validation_accuracy"]  # type: ignore[no-any-return]

    @property
    def block_accuracy(self) -> list[float | None] | None:
        """Test accuracy of every block by its own prediction, bottom to top."""
        return self.summary["block_accuracy"]  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Tensor]:
        """The network's parameters and buffers on the CPU, under their original names. No collective.

        Raises:
            RuntimeError: This is not rank 0.
        """
        if not self.is_main:
            raise RuntimeError("state_dict: the weights are on rank 0, see is_main")
        return dict(self._state)

    def save(self, path: str | Path) -> None:
        """Write `state_dict` to ``path`` with ``torch.save``; ranks other than 0 write nothing."""
        if self.is_main:
            torch.save(self.state_dict(), path)


@dataclass(frozen=True)
class ProcessControl:
    """Signals, restarts and secret of a run's process."""

    signals: Signals | None = None
    """End the run after a checkpoint, if it writes any."""
    restarted: "SupervisedRank | None" = None
    """This process, where a supervisor replaces ranks that are lost."""
    secret: bytes | None = field(default=None, repr=False)
    """The content of ``engine.secret_file``."""


def connect_and_fit(
    job: Job, config: TrainConfig, info: RankInfo, callbacks: Sequence[Callback], control: ProcessControl
) -> FitResult:
    """Join the processes of ``job``, train, and part. Arguments and errors are those of `Trainer.fit`."""
    if info.size > 1:
        interfaces(info)  # a wrong one is refused before there is a folder
    if config.engine.secret_file is not None:
        if info.size > 1 and control.restarted is None:
            raise ValueError(
                f"engine.secret_file={config.engine.secret_file}: guards the sockets of engine.recovery=rank, which is "
                "for programs of the command line; allowed here is None"
            )
        control = replace(control, secret=read_secret(config.engine.secret_file))
    # Before there is anything that a worker should not inherit: the lock of the folder, sockets to other ranks.
    with _workers(job, config, info) as workers:
        if workers is not None:
            job = replace(job, batches=replace(job.batches, workers=workers))
            if 1 in owned_blocks(job.schedule, job.topology, info.rank) and job.batches.dataset.train.images:
                _ = job.batches.moments  # while no rank waits for a batch
        return _join_and_fit(job, config, info, callbacks, control)


@contextmanager
def _workers(job: Job, config: TrainConfig, info: RankInfo) -> Iterator[ReaderPool | None]:
    """The processes that read what this rank needs and what is not in memory; None if there is no such thing."""
    blocks = owned_blocks(job.schedule, job.topology, info.rank)
    fields: set[Field] = set()
    if 1 in blocks:
        fields |= {"inputs", "labels"} if job.plan.predicts_down else {"inputs"}
    if job.topology.blocks in blocks:
        fields.add("labels")
    if not any(job.batches.read_by_workers(field) for field in fields):
        yield None
        return
    sources = {name: source for name, source in job.batches.sources.items() if isinstance(source, Items)}
    workers = ReaderPool(config.data.workers, sources, config.engine.timeout)
    try:
        yield workers
    finally:
        workers.close()


def _join_and_fit(
    job: Job, config: TrainConfig, info: RankInfo, callbacks: Sequence[Callback], control: ProcessControl
) -> FitResult:
    again = control.restarted is not None and control.restarted.restart_count > 0
    point = _resume_point(job, config, info, again) if info.is_main else None
    grace, signals = config.checkpoint.grace, control.signals

    def on_stop(number: int) -> None:
        if signals is not None:
            message = f"error: no checkpoint within checkpoint.grace={grace:g} s of {signal.Signals(number).name}"
            signals.expire(number, grace, message)

    with nullcontext() if point is None or point.directory is None else point.directory:
        comm = _connect(config, info, control, on_stop)

        def stop(number: int) -> bool:
            if comm.stop.possible:
                on_stop(number)
                comm.request_stop(number)
            return comm.stop.possible

        with signals.handled_by(stop) if signals is not None and config.checkpoint.every else nullcontext():
            result = fit(job, config, comm, point, callbacks)
            comm.close()
    if result is None:
        raise FinishedError(f"run.dir={config.run.dir}: has finished")
    return result


def _connect(
    config: TrainConfig, info: RankInfo, control: ProcessControl, on_stop: Callable[[int], None]
) -> Communicator:
    timeout, restarted = config.engine.timeout, control.restarted
    store = rendezvous(info, timeout)
    if restarted is None or store is None:
        return connect(store, info.rank, info.size, timeout=timeout, on_stop=on_stop)
    from counterflow.recovery.recoverable import connect_recoverable  # opt-in: nothing of it on the main path

    return connect_recoverable(
        store,
        info.size,
        restarted,
        rank=info.rank,
        timeout=timeout,
        on_stop=on_stop,
        replay_bytes=config.engine.replay << 20,
        secret=control.secret,
    )


def _resume_point(job: Job, config: TrainConfig, info: RankInfo, again: bool) -> ResumePoint | None:
    """The start of the run; None if this rank was lost when all was done, and there is nothing left."""
    if config.run.dir is None:
        return ResumePoint()
    try:
        return open_run_dir(job, config, (lambda text: None) if again else _log.warning, alone=not again)
    except FinishedError:
        if again or info.restart_count:
            return None
        raise


def fit(
    job: Job, config: TrainConfig, comm: Communicator, point: ResumePoint | None, callbacks: Sequence[Callback] = ()
) -> FitResult | None:
    """Run ``job`` on this rank; None where nothing is left to do.

    Args:
        job: The run; its cut may still have to be measured.
        config: The description of the run for its files and hashes.
        comm: The processes of the run.
        point: Where the run begins, on rank 0 alone. None on rank 0 says that nothing is left to do.

    Raises:
        PreemptedError: A signal ended the run early on all ranks, once its checkpoint is whole.
        ValueError: The ranks were given different networks.
    """
    mine = None
    if point is not None:
        whole = job if point.cut or job.cut else materialized(job, config)  # to measure its layers
        mine = replace(point, directory=None, cut=point.cut or choose_partition(whole))
    begin, *_ = comm.all_gather(mine, "where to begin")
    if begin is None or comm.run_is_over:
        comm.all_gather(None, "the end")
        return None
    assert isinstance(begin, ResumePoint)
    if comm.restart_count and point is None:
        begin = _latest(begin, job)
    if begin.checkpoint is None or not job.pretrained:  # else some ranks have read the file, and some have not
        _check_initial_weights(job, config, comm)
    assert begin.cut is not None, "rank 0 chose one"
    services: Rank0Services | None = None

    def check() -> None:
        if services is not None:
            services.check()

    job = replace(job, plan=replace(job.plan, start=begin.batches), cut=tuple(begin.cut))
    blocks = owned_blocks(job.schedule, job.topology, comm.rank)
    job = materialized(job, config, blocks, loads=begin.checkpoint is None)
    if config.train.patience:
        job = replace(job, plan=replace(job.plan, decided_by=EarlyEnd(job, comm, check).is_reached))
    engine = build_engine(job)
    waits = WaitTimes()

    def report(item: BlockMetrics | BlockWritten) -> None:
        check()
        comm.send_report(item.to_json())

    callback = MetricsCallback(
        comm.rank, job.log_every, job.plan.ends_with, lambda: waits.receive, report, before=begin.seconds
    )
    directory = CheckpointDirectory(begin.path / CHECKPOINTS) if begin.path is not None else None
    evaluated = (
        CheckpointDirectory(begin.path / EVALUATED) if begin.path is not None and config.checkpoint.best else None
    )
    gathers = config.checkpoint.transport == "gather" and directory is not None and comm.size > 1
    storage = RemoteStorage(comm) if gathers and comm.rank > 0 else None
    checkpoints = CheckpointWriter(
        directory, begin.checkpoint, job.device, report, comm.watchdog.timeout, evaluated, storage
    )
    tracing = None
    if config.trace and begin.path is not None:
        from counterflow.trace.session import TraceSession  # opt-in

        tracing = TraceSession(comm, begin.path, job.device)
    title = f"{config.algorithm.name}, schedule {job.schedule}, {config.model.name} on {config.data.name}"
    context = RunContext(comm, callback, checkpoints, waits, tracing.recorder if tracing is not None else None)
    with checkpoints, ExitStack() as stack:
        if gathers and comm.rank == 0 and directory is not None:
            stack.enter_context(CheckpointServer(comm, directory, evaluated, begin.checkpoint))
        if point is not None:
            if point.directory is not None:
                callbacks = [*callbacks, *map(make_logger, config.run.loggers)]
            services = stack.enter_context(Rank0Services(job, config, point, engine, comm, callbacks))
        try:
            result = engine.run(context)
        except PreemptedError:
            sent = comm.all_gather(comm.reports_sent, "the last checkpoint")
            if services is not None:
                services.finish(sent)
            if tracing is not None:
                tracing.finish(title)
            comm.all_gather(None, "the end")
            raise
        checkpoints.finish()
        scratch = None if begin.path is None else begin.path / "weights.part"
        state = original_state(job, gather_tensors(result.modules, comm, "the weights", scratch))
        readouts = {} if scratch is None else gather_tensors(_named(result.readouts), comm, "the readouts", scratch)
        results = comm.all_gather((replace(result, modules={}, readouts={}), comm.reports_sent), "results")
        summary = None
        if services is not None:
            services.finish([sent for _, sent in results])
            ranks = [rank_result for rank_result, _ in results]
            _check_copies(job, ranks)
            summary = summarize(job, config, begin, ranks, services.evaluations, engine.bytes_per_batch())
            if job.activations and begin.path is not None:
                save_activations(begin.path, job, [rank_result for rank_result, _ in results])
            if services.best is not None and begin.path is not None:
                summary |= _save_best(begin.path, job, services.best)
            if begin.path is not None:
                description, tokenizer = describe(job, config, summary, state), job.batches.dataset.tokenizer
                files = ModelFiles(description, state, readouts, tokenizer)
                files.write(begin.path)
            services.summarize(summary)
        if tracing is not None:
            tracing.finish(title)
        # Also a barrier: rank 0 may still read from a store that ends with another process.
        summary = comm.all_gather(summary, "the end")[0]
        if services is not None:
            services.end(summary)
    return FitResult(summary, comm.rank == 0, state)


def _check_initial_weights(job: Job, config: TrainConfig, comm: Communicator) -> None:
    """Raise ``ValueError`` if the ranks were given different networks."""
    try:
        if job.resumes and not is_outline(job.network):  # from checkpoints that turned out to be damaged
            load_initial_weights(job.network, config.model)
        first, *others = comm.all_gather(_initial_digest(job, config), "the initial weights")
        different = [rank for rank, other in enumerate(others, 1) if other != first]
        if different:
            raise ValueError(f"model: rank {different[0]} was given other initial parameters than rank 0")
    except ValueError:
        comm.close()  # the process may fit another network
        raise


def _initial_digest(job: Job, config: TrainConfig) -> bytes:
    """Checksum of the initial weights, or of what each process makes its own layers from: names and shapes, and the
    file of ``model.init``."""
    file = config.model.init if is_outline(job.network) else None
    return digest(job.network) + (bytes.fromhex(sha256(Path(file).expanduser())) if file else b"")


def _check_copies(job: Job, results: Sequence[RankResult]) -> None:
    """Raise `BlockError` where copies that step together differ: a rule changes what it does not name."""
    if job.sync.mode != "gradients":
        return
    digests = {piece: value for result in results for piece, value in result.digests.items()}
    for piece in sorted(digests):
        if digests[piece] != digests[Piece(piece.block)]:
            raise BlockError(
                f"{piece}: has other parameters or buffers than that of replica 0, although they step together; "
                "LocalRule.running_buffers must name every buffer that a batch changes"
            )


def _named(readouts: Mapping[int, nn.ModuleDict]) -> dict[int, nn.Module]:
    """Readouts and decoders under their names in `READOUTS`: ``block.K.readout.NAME``."""
    return {k: nn.ModuleDict({"block": nn.ModuleDict({str(k): modules})}) for k, modules in readouts.items()}


def _latest(begin: ResumePoint, job: Job) -> ResumePoint:
    """The start of a rank that takes the place of one that ``begin`` was meant for."""
    assert begin.path is not None, "recovery needs a run directory"
    found = CheckpointDirectory(begin.path / CHECKPOINTS).latest(job.plan.batches, lambda text: None)
    return begin if found is None else replace(begin, checkpoint=found[0], batches=found[1].batches)


def _save_best(folder: Path, job: Job, best: BestWeights) -> dict[str, Any]:
    """Write ``best.safetensors``, under the network's own names; what the summary says of it."""
    if best.batches is None:
        return {}
    try:
        state = original_state(job, best.load())
        atomic_write(folder / BEST, partial(write_tensors, state))
    except OSError as error:
        _log.warning(f"{folder}: no {BEST} ({error.strerror or error})")
        return {}
    assert best.score is not None
    if job.batches.dataset.tokens_per_byte is None:
        return {"best_validation_accuracy": best.score, "best_steps": best.batches}
    bits = -best.score if isfinite(best.score) else None
    return {"best_validation_bits_per_byte": bits, "best_steps": best.batches}
