"""What a rank's part of a run is in touch with."""

from collections.abc import Callable
from dataclasses import dataclass

from counterflow.checkpoint import BlockState, CheckpointWriter
from counterflow.engine.execute import BlockError
from counterflow.engine.stage import Callback, WaitTimes
from counterflow.trace.recorder import Recorder
from counterflow.transport import Communicator


@dataclass(frozen=True)
class RunContext:
    comm: Communicator
    callback: Callback
    waits: WaitTimes
    archive: CheckpointWriter
    recorder: Recorder | None = None
    """Of spans, if they are wanted."""


class PreemptedError(Exception):
    """Because of a signal, all ranks ended after the same batch, each with a checkpoint of its blocks."""

    def __init__(self, batches: int, signal: int) -> None:
        super().__init__(batches, signal)
        self.batches = batches
        """Training batches so far."""
        self.signal = signal


def restore(context: RunContext, block: int, load: Callable[[BlockState], object]) -> None:
    """Have ``load`` take the state that ``block`` goes on from, if there is one. Raises `RunError`."""
    try:
        state = context.archive.restore(block)
        if state is not None:
            load(state)
    except (ValueError, RuntimeError) as error:  # torch's, for a state that does not fit
        raise BlockError(f"rank {context.comm.rank}: block {block}: {str(error).splitlines()[0]}") from error


def check_halt(context: RunContext, batches: int) -> None:
    """Called after the last action of a run of ``batches`` batches: raises `StoppedError` if it was halted, once all
    is written."""
    halt = context.comm.stop
    if halt.last is not None and halt.last < batches - 1:
        context.archive.finish()
        raise PreemptedError(halt.last + 1, halt.signal or 0)
