"""Services of one rank's part of a run, and the ways in which it ends early."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from counterflow.algorithms.rule import Metrics
from counterflow.checkpoint import BlockState, CheckpointWriter
from counterflow.trace.recorder import Recorder
from counterflow.transport import Communicator


class BlockCallback(Protocol):
    """Receives the metrics of every block of a rank."""

    def should_log(self, n: int) -> bool:
        """The metrics of batch ``n`` will be read."""
        ...

    def on_step(self, block: int, n: int, metrics: Metrics) -> None: ...

    def on_eval(self, block: int, n: int, split: str, metrics: Mapping[str, float]) -> None: ...


@dataclass
class WaitTimes:
    """Seconds that a process has spent waiting so far."""

    receive: float = 0.0
    send: float = 0.0


@dataclass(frozen=True)
class RunContext:
    comm: Communicator
    callback: BlockCallback
    checkpoints: CheckpointWriter
    waits: WaitTimes = field(default_factory=WaitTimes)
    recorder: Recorder | None = None
    """Recorder of spans, if they are wanted."""


class BlockError(Exception):
    """A block that cannot go on; the text names rank, block and batch, and the cause is chained."""


class PreemptedError(Exception):
    """Because of a signal, all ranks ended after the same batch, each with a checkpoint of its blocks."""

    def __init__(self, batches: int, signal: int) -> None:
        super().__init__(batches, signal)
        self.batches = batches
        """Training batches so far."""
        self.signal = signal


def restore_block(context: RunContext, block: int, load: Callable[[BlockState], object]) -> None:
    """Call ``load`` with the state that ``block`` goes on from, if there is one. Raises `BlockError`."""
    try:
        state = context.checkpoints.restore(block)
        if state is not None:
            load(state)
    except (ValueError, RuntimeError) as error:  # torch's, for a state that does not fit
        raise BlockError(f"rank {context.comm.rank}: block {block}: {str(error).splitlines()[0]}") from error


def raise_if_preempted(context: RunContext, batches: int) -> None:
    """After the last action of a run of ``batches`` batches: raise `PreemptedError` if a signal ended it early, once
    all checkpoints are written."""
    stop = context.comm.stop
    if stop.last is not None and stop.last < batches - 1:
        context.checkpoints.finish()
        raise PreemptedError(stop.last + 1, stop.signal or 0)
