"""Profile of a model on this machine, and the time and memory that it means for the stages of a partition."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import prod

import torch
from torch import Tensor, nn

from counterflow.algorithms.muon import hidden_weights
from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.rule import MessageSpec, RuleSet, Shape
from counterflow.config import SGD, AdamW, Muon
from counterflow.engine.job import Job
from counterflow.engine.message_sizes import down_bytes, output_bytes, up_bytes
from counterflow.engine.profile import message_from_below, pair_time, plain_times, rules_of
from counterflow.models.partition import best_of, synchronized_ns
from counterflow.schedule.forecast import SEND_BUFFERS, StageCost, Workload
from counterflow.topology import Topology

_SMALLER = 8
"""Factor by which a second batch that layers are timed with is smaller; time that does not shrink with it is fixed."""
_SMALLEST = 2
"""Smallest batch, for batch norm."""


@dataclass(frozen=True, kw_only=True)
class BlockOverhead:
    """Cost of a block pair beyond its layers, as a function of where it ends: latent head, loss and feedback.

    Seconds and bytes of one update batch.
    """

    target: float = 0.0
    """Read a target and make the one for the block below."""
    forward: float = 0.0
    learn: float = 0.0
    parameters: int = 0
    """Bytes of parameters."""
    kept: int = 0
    """Bytes held from forward to learn."""
    up: int = 0
    """Bytes of the message to the block above."""
    unpacked: int = 0
    """Bytes of the numbers in which the block above takes that message, where these are not the message itself."""
    down: int = 0
    """Bytes of a target message from the block above."""


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """Cost of a layer, in seconds and bytes of one update batch."""

    forward: float
    backward: float
    """Backward pass, with the gradient of the layer's input."""
    entrance: float = 0.0
    """Part of ``backward`` that the lowest layer of a block saves, from which no gradient goes down."""
    update: float = 0.0
    fixed_forward: float = 0.0
    """Part of ``forward`` that a micro-batch of any size takes."""
    fixed_backward: float = 0.0
    parameters: int = 0
    """Bytes of parameters."""
    kept: int = 0
    """Bytes held from forward to backward: the output, and tensors saved by autograd."""
    output: int = 0
    """Bytes of the output, and of its gradient."""
    block_overhead: BlockOverhead = BlockOverhead()
    """Cost of a block pair that ends with this layer."""


@dataclass(frozen=True)
class ModelProfile:
    """Costs of ``layers`` bottom to top, for update batches of ``batch`` samples."""

    layers: Sequence[LayerProfile]
    batch: int
    copies: int = 4
    """Tensors for each parameter: itself, its gradient, and the state of the optimizer."""


def profile_model(job: Job, log: Callable[[str], None]) -> ModelProfile:
    """Measure the model of ``job``, which has one block. Neither the job nor the random generator changes.

    ``log`` is called with every step.
    """
    layers, batch = len(job.network), job.batch_size
    small = max(min(_SMALLEST, batch), batch // _SMALLER)
    single = replace(job, topology=Topology(layers, 1), cut=(1,) * layers)
    profiles = []
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        log("layers, forward and backward")
        times, small_times = plain_times(job, batch), plain_times(job, small)
        inner_times = plain_times(job, batch, inputs=False)
        rules = rules_of(single, [1] * layers)
        for i, (forward, backward) in enumerate(times):
            log(f"layer {i + 1} of {layers}, as a block pair")
            layer = copy.deepcopy(job.network[i]).train()
            job.runtime.prepare_module(layer, ())
            kept, output = _layer_bytes(single, rules, i, layer)
            costs = LayerProfile(
                forward=forward / 1e9,
                backward=backward / 1e9,
                entrance=max(0, backward - inner_times[i][1]) / 1e9,
                update=_update_time(single, layer) / 1e9,
                fixed_forward=_fixed(forward, small_times[i][0], batch, small) / 1e9,
                fixed_backward=_fixed(backward, small_times[i][1], batch, small) / 1e9,
                parameters=_bytes(layer.parameters()),
                kept=kept,
                output=output,
            )
            profiles.append(replace(costs, block_overhead=_block_overhead(single, rules, i, costs)))
    optimizer = job.optimizer
    momentum = isinstance(optimizer, Muon) or (isinstance(optimizer, SGD) and optimizer.momentum)
    copies = 4 if isinstance(optimizer, AdamW) else 3 if momentum else 2
    return ModelProfile(profiles, batch, copies + bool(optimizer.average))


def _block_overhead(job: Job, rules: RuleSet, i: int, layer: LayerProfile) -> BlockOverhead:
    block, top = i + 1, i + 1 == len(job.network)
    time = pair_time(job, rules, block)
    rule = rules.rule(block)
    job.runtime.prepare_module(rule, ())
    message = message_from_below(job, rules, block)
    with job.runtime.autocast():
        kept, _ = _kept_bytes(rule, message[0], lambda: rule.forward_message(message)[0])
    return BlockOverhead(
        target=time.target / 1e9,
        forward=max(0.0, time.forward / 1e9 - layer.forward),
        learn=max(0.0, time.learn / 1e9 - (layer.backward - layer.entrance) - layer.update),
        parameters=max(0, _bytes(rule.parameters()) - layer.parameters),
        kept=max(0, kept - layer.kept),
        up=0 if top else up_bytes(job, rules, block),
        unpacked=0 if top or job.runtime.wire == "fp32" else _number_bytes(rules.activation(block, job.batch_size)),
        down=0 if top or not job.plan.targets_down else down_bytes(job, rules, block),
    )


def _update_time(job: Job, layer: nn.Module) -> int:
    """Nanoseconds of an update of the parameters of ``layer``, which changes."""
    parameters = list(layer.parameters())
    if not parameters:
        return 0
    hidden = hidden_weights(layer, is_top=False)
    optimizer = BlockOptimizer(parameters, job.optimizer, job.plan.batches, hidden=hidden)

    def timed() -> tuple[int]:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        start = synchronized_ns(job.device)
        optimizer.step(0)
        return (synchronized_ns(job.device) - start,)

    return best_of(timed)[0]


def _layer_bytes(job: Job, rules: RuleSet, i: int, layer: nn.Module) -> tuple[int, int]:
    """Bytes that ``layer``, a copy of layer ``i``, holds for its backward pass, and bytes of its output."""
    source = message_from_below(job, rules, i + 1)[0].detach()
    source.requires_grad_(source.is_floating_point())
    with job.runtime.autocast():
        kept, shape = _kept_bytes(layer, source, lambda: layer(source))
    return kept, output_bytes(job, shape)


def _kept_bytes(module: nn.Module, source: Tensor, forward: Callable[[], Tensor]) -> tuple[int, Shape]:
    """Bytes that ``forward`` leaves until a backward pass, the output among them; and the shape of the output.

    Parameters, buffers and ``source`` are not counted: they exist anyway.
    """
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = forward()
    count(output)
    for other in (source, *module.parameters(), *module.buffers()):
        storages.pop(other.untyped_storage().data_ptr(), None)
    return sum(storages.values()), tuple(output.shape)


def _fixed(time: int, small_time: int, batch: int, small: int) -> float:
    """Time of no samples on the straight line through the times of two batch sizes, between 0 and the smaller time."""
    if small == batch:
        return 0.0
    return min(float(small_time), max(0.0, (small_time * batch - time * small) / (batch - small)))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _number_bytes(specs: MessageSpec) -> int:
    return sum(4 * prod(shape) for shape, dtype in specs if dtype.is_floating_point)


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """Seconds and bytes of a block on a machine, for one update batch."""

    cost: StageCost
    states: int
    """Bytes of parameters, gradients and optimizer states."""
    kept: int
    """Bytes held from forward to backward."""
    up: int
    """Bytes of the message to the stage above."""
    down: int
    """Bytes of the message from the stage above."""
    unpacked: int = 0
    """Bytes of the numbers in which the stage above takes the message, where these are not the message itself."""

    @property
    def seconds(self) -> float:
        return self.cost.forward + self.cost.backward + self.cost.update + self.cost.target


StageOf = Callable[[int, int], StageEstimate]
"""Estimate of the stage of the layers ``start .. end - 1``, from ``start`` and ``end``."""


def local_stage(profile: ModelProfile, speed: float) -> StageOf:
    """Estimates under the local rule, on processes that are ``speed`` times as fast as this one."""
    layers, total = profile.layers, _totals(profile.layers)

    def stage(start: int, end: int) -> StageEstimate:
        extra = layers[end - 1].block_overhead
        return StageEstimate(
            cost=StageCost(
                forward=(total("forward", start, end) + extra.forward) / speed,
                backward=(total("backward", start, end) - layers[start].entrance + extra.learn) / speed,
                update=total("update", start, end) / speed,
                target=extra.target / speed,
            ),
            states=profile.copies * int(total("parameters", start, end) + extra.parameters),
            kept=int(total("kept", start, end)) + extra.kept,
            up=extra.up,
            unpacked=extra.unpacked,
            down=extra.down,
        )

    return stage


def backprop_stage(profile: ModelProfile, speed: float, microbatches: int) -> StageOf:
    """Estimates under a pipeline of ``microbatches``: activations go up, and gradients of the same size come down."""
    layers, total, more = profile.layers, _totals(profile.layers), microbatches - 1

    def stage(start: int, end: int) -> StageEstimate:
        saved = layers[0].entrance if start == 0 else 0.0
        forward = total("forward", start, end) + more * total("fixed_forward", start, end)
        backward = total("backward", start, end) + more * total("fixed_backward", start, end) - saved
        return StageEstimate(
            cost=StageCost(forward / speed, backward / speed, total("update", start, end) / speed),
            states=profile.copies * int(total("parameters", start, end)),
            kept=int(total("kept", start, end)),
            up=layers[end - 1].output,
            down=layers[end - 1].output,
        )

    return stage


def stages_of(stage: StageOf, counts: Sequence[int]) -> list[StageEstimate]:
    """Estimates of blocks of ``counts`` layers."""
    return [stage(start, end) for start, end in pairwise([0, *accumulate(counts)])]


def workload(stages: Sequence[StageEstimate]) -> Workload:
    """Costs and message sizes of ``stages``, for the simulator."""
    down = [stage.down for stage in stages[:-1]]
    return Workload([stage.cost for stage in stages], [stage.up for stage in stages[:-1]], down if any(down) else ())


def local_memory(stages: Sequence[StageEstimate], lag: int, depth: int) -> list[int]:
    """Largest number of bytes of each rank under the local rule.

    They are its states, tensors held for one batch, ``depth`` received messages and the one that it works on, its
    numbers where the message has others, its send buffers, and the targets of later batches.
    """
    below = [0, *(stage.up for stage in stages)]
    unpacked = [0, *(stage.unpacked for stage in stages)]
    return [
        (stage.states + stage.kept + (depth + 1) * below[i] + unpacked[i])
        + (SEND_BUFFERS * stage.up + lag * (i + 1) * stage.down)
        for i, stage in enumerate(stages)
    ]


def backprop_memory(stages: Sequence[StageEstimate], in_flight: Sequence[float], microbatches: int) -> list[int]:
    """Largest number of bytes of each rank under a pipeline.

    ``in_flight`` are the batches, or parts of one, that wait for their gradients in each stage.
    """
    below = [0, *(stage.up for stage in stages)]
    return [
        stage.states + int(held * (stage.kept + below[i])) + SEND_BUFFERS * (stage.up + stage.down) // microbatches
        for i, (stage, held) in enumerate(zip(stages, in_flight, strict=True))
    ]


def _totals(layers: Sequence[LayerProfile]) -> Callable[[str, int, int], float]:
    """Sum of an attribute over the layers ``start .. end - 1``, from its name, ``start`` and ``end``."""
    names = ("forward", "backward", "update", "fixed_forward", "fixed_backward", "parameters", "kept")
    ends = {name: [0.0, *accumulate(getattr(layer, name) for layer in layers)] for name in names}
    return lambda name, start, end: ends[name][end] - ends[name][start]
