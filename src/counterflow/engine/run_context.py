"""One rank's part of a run: the services that it has, its result, and the ways in which it ends early."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from counterflow.algorithms.rule import Metrics
from counterflow.checkpoint import BlockState, CheckpointWriter
from counterflow.engine.cost import ExitFlops, Flops
from counterflow.metrics.block_metrics import Value
from counterflow.schedule import RunPlan
from counterflow.topology import Piece
from counterflow.trace.recorder import Recorder
from counterflow.transport import Communicator


class BlockCallback(Protocol):
    """Receives the metrics of every block of a rank."""

    def should_log(self, n: int) -> bool:
        """The metrics of batch ``n`` will be read."""
        ...

    def on_step(self, block: int, n: int, metrics: Metrics) -> None: ...

    def on_eval(self, block: int, n: int, split: str, metrics: Mapping[str, Value]) -> None: ...


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

    def report(self, device: torch.device, block: int, n: int, metrics: Metrics) -> None:
        """Pass on the metrics of a training batch, of the piece of number ``block``.

        Raises ``FloatingPointError`` if the loss is not finite.
        """
        # On a GPU, to look at a number is to wait for it: the loss is checked when it is reported anyway.
        if "loss" in metrics and (device.type == "cpu" or self.callback.should_log(n)):
            loss = float(metrics["loss"])
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss}")
        self.callback.on_step(block, n, metrics)


@dataclass(frozen=True)
class RankResult:
    digests: dict[Piece, bytes]
    """sha256 of the parameters and buffers of each of its pieces."""
    modules: dict[int, nn.Module]
    """The trained forward block of each of its blocks."""
    readouts: dict[int, nn.ModuleDict]
    """``readout`` and ``decoder`` of each of its blocks, where it has them."""
    effective_parameters: int
    """Parameters of its blocks without which the network does not predict."""
    affiliated_parameters: int
    """Parameters that only help to learn."""
    seconds: float
    """Wall time of its steady state: without the fill before it and the drain after it."""
    batches: int
    """Training batches of its steady state."""
    last: int
    """The last training batch."""
    receive_wait: float
    """Seconds of these that it waited for a message."""
    send_wait: float
    """Seconds of these that it waited for room to send."""
    flops: Flops
    exits: dict[int, ExitFlops]
    """FLOPs of a prediction in each of its blocks."""
    activations: dict[int, Tensor]
    """Outputs of each of its blocks for some test samples, ``[M, d]``, if wanted."""


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameters of ``modules``, frozen ones too."""
    return sum(p.numel() for module in modules for p in module.parameters())


class BlockError(Exception):
    """A block that cannot go on; the text names rank, block and batch, and the cause is chained."""


class PreemptedError(Exception):
    """Because of a signal, all ranks ended after the same batch, each with a checkpoint of its blocks."""

    def __init__(self, batches: int, signal: int) -> None:
        super().__init__(batches, signal)
        self.batches = batches
        """Training batches so far."""
        self.signal = signal


def restore_block(context: RunContext, number: int, block: int, load: Callable[[BlockState], object]) -> None:
    """Call ``load`` with the state that a piece goes on from, if there is one. Raises `BlockError`.

    ``number`` is that of the piece, a copy of ``block``; if its state has no rule, it is that of the first replica.
    """
    try:
        state = context.checkpoints.restore(number)
        if state is not None and not state.rule:
            same = context.checkpoints.restore(block)
            assert same is not None, "a checkpoint has all blocks"
            state = replace(state, rule=same.rule)
        if state is not None:
            load(state)
    except (ValueError, RuntimeError) as error:  # torch's, for a state that does not fit
        raise BlockError(f"rank {context.comm.rank}: block {block}: {str(error).splitlines()[0]}") from error


def raise_if_preempted(context: RunContext, plan: RunPlan) -> None:
    """After the last action of a run: raise `PreemptedError` if a signal ended it early, once all checkpoints are
    written."""
    stop = context.comm.stop
    if stop.last is not None and not plan.ends_with(stop.last):
        context.checkpoints.finish()
        raise PreemptedError(stop.last + 1, stop.signal or 0)
