"""The engine of end-to-end references, on the pipeline schedules of torch.distributed.pipelining.

On one process it is the plain loop: forward, backward and update of the whole network, batch after batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

from counterflow.algorithms import EndToEnd
from counterflow.algorithms.chunked_loss import mean_of_rows
from counterflow.algorithms.muon import hidden_weights
from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.weight_average import WeightAverage
from counterflow.checkpoint import BlockState
from counterflow.data.batch_loader import BatchKey, Field
from counterflow.data.prefetch import prefetch
from counterflow.engine import cost
from counterflow.engine.cost import ExitFlops, Flops
from counterflow.engine.evaluation import AccuracyMeter, ActivationRecorder
from counterflow.engine.job import Job
from counterflow.engine.run_context import (
    BlockError,
    RankResult,
    RunContext,
    count_parameters,
    raise_if_preempted,
    restore_block,
)
from counterflow.engine.stage_blocks import StageBlocks, empty_message
from counterflow.metrics.callback import CallbackError
from counterflow.metrics.provenance import digest
from counterflow.models.freezing import train_unfrozen
from counterflow.schedule import RunPlan
from counterflow.schedule.pipeline_schedules import blocks_of_stages, owners
from counterflow.topology import Piece
from counterflow.trace.recorder import Recorder, span
from counterflow.transport import ChannelError, Communicator
from counterflow.transport.channel import gloo_reason

Step = Callable[[int, Tensor, Tensor], dict[str, Tensor]]
"""Gradients of batch n from inputs and labels; returns metrics on the process of the last stage, none elsewhere."""


def summarize(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The cross entropy at the top."""
    return {"loss": metrics[-1]["loss"]}


class _Stage(pipelining.PipelineStage):
    """A stage that measures its time of computation: the rest of the time its rank waited."""

    busy = 0.0
    smoothing = 0.0
    lane = 0
    recorder: Recorder | None = None
    batch = 0
    """Training batch in progress."""
    _microbatch = 0
    """Micro-batch of the last forward pass."""

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self._microbatch = fwd_chunk_id
        with self._timed("forward", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with self._timed("backward", bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with self._timed("backward", bwd_chunk_id):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        """First messages to the neighbours. Torch 2.11 sends them from a rank to itself as well, which gloo cannot."""
        return [op for op in super()._get_init_p2p_neighbors_ops() if op.group_peer != self.group_rank]

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Loss of the last micro-batch, at the top."""
        with self._timed("loss", self._microbatch):
            return _cross_entropy(output, labels, self.smoothing)

    @contextmanager
    def _timed(self, name: str, microbatch: int) -> Iterator[None]:
        start = perf_counter()
        with span(self.recorder, name, self.lane, self.batch, microbatch):
            yield
        self.busy += perf_counter() - start


class _Trained(nn.Module):
    """A block and its optimizer, as checkpoints hold them."""

    def __init__(self, block: nn.Module, job: Job, is_top: bool) -> None:
        super().__init__()
        self.block = block
        hidden = hidden_weights(block, is_top)
        self.optimizer = BlockOptimizer(block.parameters(), job.optimizer, job.plan.batches, hidden=hidden)
        decay = job.optimizer.average
        self.average = WeightAverage(block, block, decay) if decay else None

    def step(self, n: int, squared_norm: Tensor | None) -> None:
        self.optimizer.step(n, squared_norm)
        if self.average is not None:
            self.average.update(n)

    def digest(self) -> bytes:
        return digest(self.block if self.average is None else self)

    def restore(self, state: BlockState) -> None:
        self.load_state_dict(state.rule)


class Pipeline:
    """The blocks of a run as stages, and the ranks that own them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        assert isinstance(job.algorithm, EndToEnd), "local rules have no pipeline schedule"
        self._smoothing = job.algorithm.smoothing
        self._group: dist.ProcessGroup | None = None
        self._stages = blocks_of_stages(job.schedule, job.topology)
        self._ranks = owners(job.schedule, job.topology.ranks, len(self._stages))

    def run(self, context: RunContext) -> RankResult:
        """Train this rank's stages to the end.

        Raises:
            ChannelError: A rank was lost.
            BlockError: A stage ended the run.
            CallbackError: A callback of rank 0 ended the run.
            PreemptedError: A signal ended the run after a checkpoint.
        """
        comm, waits, recorder = context.comm, context.waits, context.recorder
        job, plan = self._job, self._job.plan
        mine = {
            stage: StageBlocks(
                [job.blocks[block - 1] for block in blocks],
                job.runtime,
                job.shapes[blocks[0] - 2] if stage > 0 else None,
                stage == len(self._stages) - 1,
            )
            for stage, (blocks, rank) in enumerate(zip(self._stages, self._ranks, strict=True))
            if rank == comm.rank
        }
        owned = [block for stage in mine for block in self._stages[stage]]
        flops = sum((cost.end_to_end(job, block) for block in owned), Flops(0, 0, 0))
        recorders = {block: ActivationRecorder(job.activations, job.test_samples, plan) for block in owned}
        if 1 in owned:
            job.initialize_inputs()
        for module in mine.values():
            job.runtime.prepare_module(module, module)
        trained = {block: _Trained(job.blocks[block - 1], job, block == job.topology.blocks) for block in owned}
        for block, pair in trained.items():
            restore_block(context, block, block, pair.restore)
        comm.stop.start(plan.start)
        busy, step = self._pipelined(mine, comm, recorder) if comm.size > 1 else self._alone(mine[0], recorder)
        lanes = {block: self._lane(stage) for stage in mine for block in self._stages[stage]}
        if recorder is not None:
            several = (self._stages[stage] for stage in mine if len(self._stages[stage]) > 1)
            recorder.lanes |= {blocks[-1]: f"blocks {blocks[0]}-{blocks[-1]}" for blocks in several}
        steady = plan.first_steady(len(self._stages))
        begin, timed_from = (start := job.runtime.now()), plan.start
        other, waited = 0.0, 0.0  # updates, and evaluations as a whole, are no waiting
        bottom, top, nothing = 0 in mine, len(self._stages) - 1 in mine, torch.empty(0)
        inputs = self._field("inputs") if bottom else repeat(nothing)
        labels = self._field("labels") if top else repeat(nothing)
        for n in plan.numbers(plan.start):
            try:
                metrics = step(n, next(inputs).to(job.device), next(labels).to(job.device))
                stepped = perf_counter()
                if comm.size > 1:
                    waits.receive = max(0.0, stepped - begin - busy() - other)
                norm = self._squared_norm(trained) if job.optimizer.clip else None
                for block, pair in trained.items():
                    with span(recorder, "update", lanes[block], n):
                        pair.step(n, norm)
                for block in owned:
                    context.report(job.device, block, n, metrics if block == job.topology.blocks else {})
                with ExitStack() as averages:
                    for average in (pair.average for pair in trained.values() if pair.average is not None):
                        averages.enter_context(average.applied())
                    self._evaluate(mine, n, context, recorders, inputs, labels)
                halts = not plan.ends_with(n) and comm.stop.should_stop_after(n)
                if halts or plan.saves_after(n):
                    for block, pair in trained.items():
                        with span(recorder, "checkpoint", lanes[block], n):
                            context.checkpoints.save(block, n + 1, BlockState(pair.state_dict()))
                other += perf_counter() - stepped
            except (ChannelError, CallbackError):
                raise
            except Exception as error:
                where = f"rank {comm.rank}: schedule {job.schedule}: batch {n}"
                if "gloo/transport" in str(error):
                    lost = ChannelError(f"{where}: lost a rank ({gloo_reason(error)})")
                    raise comm.watchdog.find_cause(lost) from error
                raise BlockError(f"{where}: {type(error).__name__}: {error}".splitlines()[0]) from error
            if n == steady - 1:
                start, waited, timed_from = job.runtime.now(), waits.receive, steady
            if halts:
                break
        raise_if_preempted(context, plan)
        seconds = job.runtime.now() - start
        digests = {Piece(block): pair.digest() for block, pair in trained.items()}
        for pair in trained.values():
            if pair.average is not None:
                pair.average.swap()
        return RankResult(
            digests=digests,
            modules={block: job.blocks[block - 1] for block in owned},
            readouts={},
            effective_parameters=count_parameters(mine.values()),
            affiliated_parameters=0,
            seconds=seconds,
            batches=n + 1 - timed_from,
            last=n,
            receive_wait=waits.receive - waited,
            send_wait=0.0,
            flops=flops,
            exits={
                block: ExitFlops(job.forward_flops(block), 0.0 if block == job.topology.blocks else None)
                for block in owned
            },
            activations={block: kept for block, of in recorders.items() if (kept := of.take()) is not None},
        )

    def _field(self, field: Field) -> Iterator[Tensor]:
        """Inputs or labels of every training batch, and of the evaluation after it."""
        batches, plan = self._job.batches, self._job.plan

        def keys(plan: RunPlan) -> Iterator[BatchKey]:
            for n in plan.numbers(plan.start):
                yield BatchKey(n)
                yield from (BatchKey(e, evaluation=True) for e in plan.evaluation(n))

        items = batches.stream(field, keys(plan), keys(plan.undecided))
        return items if batches.resident or field == "labels" else prefetch(items)

    def _squared_norm(self, trained: Mapping[int, _Trained]) -> Tensor:
        """That of the gradient of the whole network, summed block by block, bottom to top."""
        device = self._job.device
        squares = torch.zeros(self._job.topology.blocks, dtype=torch.float64, device=device)
        for block, pair in trained.items():
            squares[block - 1] = pair.optimizer.squared_norm()
        if self._group is not None:
            dist.all_reduce(squares, group=self._group)  # each sum has one term that is not zero
        return sum(squares.unbind(), torch.zeros_like(squares[0]))

    def _lane(self, stage: int) -> int:
        """Lane of a stage among the spans of its rank: its upper block."""
        return self._stages[stage][-1]

    def _alone(self, network: nn.Module, recorder: Recorder | None) -> tuple[Callable[[], float], Step]:
        job, lane, smoothing = self._job, self._lane(0), self._smoothing

        def step(n: int, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            job.runtime.seed_forward(job.seed, 0, n)
            with span(recorder, "forward", lane, n):
                output = network(inputs)
            with span(recorder, "loss", lane, n):
                loss = _cross_entropy(output, labels, smoothing)
            with span(recorder, "backward", lane, n):
                torch.autograd.backward(loss)
            return _metrics(_cross_entropy(output, labels) if smoothing else loss, output, labels)

        return lambda: 0.0, step

    def _pipelined(
        self, mine: Mapping[int, nn.Module], comm: Communicator, recorder: Recorder | None
    ) -> tuple[Callable[[], float], Step]:
        job, last, smoothing = self._job, len(self._stages) - 1, self._smoothing
        group = dist.new_group(backend=job.backend) if job.backend == "nccl" else dist.group.WORLD
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        size = job.batch_size // job.microbatches
        stages = [
            _Stage(
                module,
                stage,
                len(self._stages),
                job.device,
                input_args=self._example(stage - 1, size),
                output_args=self._example(stage, size),
                group=group,
            )
            for stage, module in mine.items()
        ]
        for stage, number in zip(stages, mine, strict=True):
            stage.lane, stage.recorder, stage.smoothing = self._lane(number), recorder, smoothing
        kind = get_schedule_class("ZBVZeroBubble" if job.schedule == "zbv" else job.schedule)
        # Losses of micro-batches are means over their samples, and gradients are averaged: the mean of the batch.
        schedule = kind(
            stages[0] if issubclass(kind, PipelineScheduleSingle) else stages,
            n_microbatches=job.microbatches,
            loss_fn=stages[-1].loss,
            scale_grads=True,
        )

        def step(n: int, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            job.runtime.seed_forward(job.seed, comm.rank, n)
            for stage in stages:
                stage.batch = n
            losses: list[Tensor] = []
            arguments = (inputs,) if 0 in mine else ()
            if last not in mine:
                schedule.step(*arguments)
                return {}
            output = schedule.step(*arguments, target=labels, losses=losses)
            loss = _cross_entropy(output, labels) if smoothing else torch.stack(losses).mean()
            return _metrics(loss, output, labels)

        return lambda: sum(stage.busy for stage in stages), step

    def _example(self, stage: int, size: int) -> Tensor:
        """A micro-batch as it leaves ``stage``; as it enters the network for stage -1."""
        job = self._job
        if stage < 0:
            return job.batches.example[:size].to(job.device)
        shape = (size, *job.shapes[self._stages[stage][-1] - 1])
        wire = "fp32" if stage == len(self._stages) - 1 else job.runtime.wire
        return empty_message(shape, wire, job.device).requires_grad_()

    @torch.no_grad()
    def _evaluate(
        self,
        mine: Mapping[int, StageBlocks],
        n: int,
        context: RunContext,
        recorders: Mapping[int, ActivationRecorder],
        inputs: Iterator[Tensor],
        labels: Iterator[Tensor],
    ) -> None:
        """Send every evaluation batch after batch ``n`` up through all stages, forward only."""
        job, last, recorder = self._job, len(self._stages) - 1, context.recorder
        meter = AccuracyMeter(job.batches.dataset.tokens_per_byte)
        for blocks in mine.values():
            blocks.eval()
        for e in job.plan.evaluation(n):
            message = torch.empty(0)
            for stage, blocks in mine.items():
                lane = self._lane(stage)
                with span(recorder, "evaluate", lane, n, e):
                    if stage == 0:
                        message = next(inputs).to(job.device)
                    elif stage - 1 not in mine:
                        message = torch.empty_like(self._example(stage - 1, job.batches.evaluation_size(e)))
                        with span(recorder, "receive", lane, n, e):
                            dist.recv(message, self._ranks[stage - 1], group=self._group)
                    output = message
                    for block, output in zip(self._stages[stage], blocks.outputs(message), strict=True):
                        recorders[block].offer(n, e, output)
                    message = blocks.message(output)
                    if stage < last and stage + 1 not in mine:
                        with span(recorder, "send", lane, n, e):
                            dist.send(message, self._ranks[stage + 1], group=self._group)
                    elif stage == last:
                        scores = message.unsqueeze(0)
                        meter.add(scores.argmax(-1), scores, next(labels).to(job.device), job.batches.view(e))
            split = job.plan.split_ending(e)
            if split is not None:
                for block in (block for stage in mine for block in self._stages[stage]):
                    if split == "validation":
                        context.checkpoints.save_evaluated(block, n + 1, job.blocks[block - 1].state_dict())
                    metrics = meter.take(split)[0] if block == job.topology.blocks else {}
                    context.callback.on_eval(block, n, split, metrics)
        for stage, blocks in mine.items():
            train_unfrozen(blocks, [layer for block in self._stages[stage] for layer in job.frozen_layers(block)])


def _cross_entropy(output: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean over samples, and over positions of sequences."""
    rows = output.flatten(0, -2), labels.flatten()
    (loss,) = mean_of_rows(lambda o, y: (F.cross_entropy(o, y, label_smoothing=smoothing),), rows, [], output.shape[-1])
    return loss


def _metrics(loss: Tensor, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"loss": loss.detach(), "accuracy": (output.argmax(-1) == labels).float().mean()}
