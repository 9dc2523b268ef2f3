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
from counterflow.algorithms.rule import MessageSpec, RuleSet
from counterflow.config import SGD, AdamW, Muon
from counterflow.engine.cost import made_up
from counterflow.engine.job import Job
from counterflow.engine.message_sizes import down_bytes, output_bytes, up_bytes
from counterflow.engine.profile import message_from_below, pair_time, plain_times, rules_of
from counterflow.message import MessageKind
from counterflow.models.partition import best_of, synchronized_ns
from counterflow.planner.local_forecast import LocalRun, bucket_count
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
    """Bytes held from forward to learn of a part."""
    up: int = 0
    """Bytes of the message to the block above."""
    unpacked: int = 0
    """Bytes of the numbers in which the block above takes a part of that message, where these are not the message
    itself."""
    down: int = 0
    """Bytes of a target message from the block above."""


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """Cost of a layer, in seconds and bytes of one update batch: of several replicas, of a share of it."""

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
    """Bytes held from forward to backward of a part: the output, and tensors saved by autograd."""
    output: int = 0
    """Bytes of the output, and of its gradient."""
    block_overhead: BlockOverhead = BlockOverhead()
    """Cost of a block pair that ends with this layer."""


@dataclass(frozen=True)
class ModelProfile:
    """Costs of ``layers`` bottom to top, for update batches of ``batch`` samples, of which each of several replicas has
    its share."""

    layers: Sequence[LayerProfile]
    batch: int
    copies: int = 4
    """Tensors for each parameter: itself, its gradient, and the state of the optimizer."""
    parts: int = 1
    """Parts in which a batch travels and is learnt (``train.accumulate``)."""


def profile_model(job: Job, log: Callable[[str], None]) -> ModelProfile:
    """Measure the model of ``job``, which has one block. Neither the job nor the random generator changes.

    A batch in parts takes so many times what one part takes. ``log`` is called with every step.
    """
    layers, parts, replicas = len(job.network), job.plan.parts, job.topology.replicas
    # A part of a replica's share is as large as the share of so many replicas.
    single = replace(job, topology=Topology(layers, 1, replicas * parts), cut=(1,) * layers)
    batch = single.shard_size
    small = max(min(_SMALLEST, batch), batch // _SMALLER)
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
            costs = LayerProfile(
                forward=forward / 1e9,
                backward=backward / 1e9,
                entrance=max(0, backward - inner_times[i][1]) / 1e9,
                update=_update_time(single, layer) / 1e9,
                fixed_forward=_fixed(forward, small_times[i][0], batch, small) / 1e9,
                fixed_backward=_fixed(backward, small_times[i][1], batch, small) / 1e9,
                parameters=_bytes(layer.parameters()),
                kept=_layer_bytes(single, rules, i, layer),
            )
            overhead = _block_overhead(single, rules, i, costs)
            whole = {name: parts * getattr(costs, name) for name in ("forward", "backward", "entrance")}
            more = {name: parts * getattr(overhead, name) for name in ("forward", "learn")}
            profiles.append(replace(costs, **whole, block_overhead=replace(overhead, **more)))
    optimizer = job.optimizer
    momentum = isinstance(optimizer, Muon) or (isinstance(optimizer, SGD) and optimizer.momentum)
    copies = 4 if isinstance(optimizer, AdamW) else 3 if momentum else 2
    profile = ModelProfile(profiles, job.batch_size, copies + bool(optimizer.average), parts)
    return with_wire(job, profile, job.runtime.wire)


def with_wire(job: Job, profile: ModelProfile, wire: str) -> ModelProfile:
    """``profile`` of ``job`` with the messages that ``engine.wire=wire`` has, and what packing them takes longer."""
    layers, parts = len(job.network), job.plan.parts
    given = replace(job, topology=Topology(layers, 1, job.topology.replicas), cut=(1,) * layers)
    job = replace(given, runtime=replace(job.runtime, wire=wire))
    rules = rules_of(job, [1] * layers)
    found = []
    for block, layer in enumerate(profile.layers, 1):
        shape = (job.shard_size // parts, *job.shapes[block - 1])
        layer = replace(layer, output=parts * output_bytes(job, shape))
        if block < layers:
            specs = rules.activation(block, job.shard_size // parts)
            longer = (
                max(0, _packing_time(job, specs) - _packing_time(given, specs)) if wire != given.runtime.wire else 0
            )
            extra = layer.block_overhead
            extra = replace(
                extra,
                forward=extra.forward + parts * longer / 1e9,
                up=up_bytes(job, rules, block),
                unpacked=0 if wire == "fp32" else _number_bytes(specs),
                down=down_bytes(job, rules, block) if job.plan.targets_down else 0,
            )
            layer = replace(layer, block_overhead=extra)
        found.append(layer)
    return replace(profile, layers=found)


def _packing_time(job: Job, specs: MessageSpec) -> int:
    """Nanoseconds in which an activation becomes a message, and numbers again."""
    activation = made_up(specs)

    def timed() -> tuple[int]:
        start = synchronized_ns(job.device)
        job.runtime.unpack(job.runtime.pack(MessageKind.ACTIVATION, activation, specs))
        return (synchronized_ns(job.device) - start,)

    return best_of(timed)[0]


def _block_overhead(job: Job, rules: RuleSet, i: int, layer: LayerProfile) -> BlockOverhead:
    """Cost of the block pair of layer ``i`` beyond ``layer``, for one part and without its messages."""
    time = pair_time(job, rules, i + 1)
    rule = rules.rule(i + 1)
    job.runtime.prepare_module(rule, ())
    message = message_from_below(job, rules, i + 1)
    with job.runtime.autocast():
        kept = _kept_bytes(rule, message[0], lambda: rule.forward_message(message)[0])
    return BlockOverhead(
        target=time.target / 1e9,
        forward=max(0.0, time.forward / 1e9 - layer.forward),
        learn=max(0.0, time.learn / 1e9 - (layer.backward - layer.entrance) - layer.update),
        parameters=max(0, _bytes(rule.parameters()) - layer.parameters),
        kept=max(0, kept - layer.kept),
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


def _layer_bytes(job: Job, rules: RuleSet, i: int, layer: nn.Module) -> int:
    """Bytes that ``layer``, a copy of layer ``i``, holds for its backward pass."""
    source = message_from_below(job, rules, i + 1)[0].detach()
    source.requires_grad_(source.is_floating_point())
    with job.runtime.autocast():
        return _kept_bytes(layer, source, lambda: layer(source))


def _kept_bytes(module: nn.Module, source: Tensor, forward: Callable[[], Tensor]) -> int:
    """Bytes that ``forward`` leaves until a backward pass, the output among them.

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
    return sum(storages.values())


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
    """Seconds and bytes of a block on a machine, for one update batch; of a copy, for its share of it."""

    cost: StageCost
    states: int
    """Bytes of parameters, gradients and optimizer states."""
    kept: int
    """Bytes held from forward to backward, of a part."""
    up: int
    """Bytes of the message to the stage above."""
    down: int
    """Bytes of the message from the stage above."""
    unpacked: int = 0
    """Bytes of the numbers in which the stage above takes a part of the message, where these are not the message
    itself."""
    parameters: int = 0
    """Bytes of parameters alone, which copies in several replicas bring to a meeting."""

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
        parameters = int(total("parameters", start, end) + extra.parameters)
        return StageEstimate(
            cost=StageCost(
                forward=(total("forward", start, end) + extra.forward) / speed,
                backward=(total("backward", start, end) - layers[start].entrance + extra.learn) / speed,
                update=total("update", start, end) / speed,
                target=extra.target / speed,
            ),
            states=profile.copies * parameters,
            kept=int(total("kept", start, end)) + extra.kept,
            up=extra.up,
            unpacked=extra.unpacked,
            down=extra.down,
            parameters=parameters,
        )

    return stage


def backprop_stage(profile: ModelProfile, speed: float, microbatches: int) -> StageOf:
    """Estimates under a pipeline of ``microbatches``: activations go up, and gradients of the same size come down."""
    # The profile has the fixed costs of its parts.
    layers, total, more = profile.layers, _totals(profile.layers), microbatches - profile.parts

    def stage(start: int, end: int) -> StageEstimate:
        saved = layers[0].entrance if start == 0 else 0.0
        forward = total("forward", start, end) + more * total("fixed_forward", start, end)
        backward = total("backward", start, end) + more * total("fixed_backward", start, end) - saved
        return StageEstimate(
            cost=StageCost(max(0.0, forward) / speed, max(0.0, backward) / speed, total("update", start, end) / speed),
            states=profile.copies * int(total("parameters", start, end)),
            kept=profile.parts * int(total("kept", start, end)),
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


def local_memory(stages: Sequence[StageEstimate], local: LocalRun, replicas: int = 1) -> list[int]:
    """Largest number of bytes of each block's process under the local rule.

    They are its states, tensors held for one part of a batch, ``depth`` received messages and the one that it works on,
    its numbers where the message has others, its send buffers, the targets of later batches, and what its copies bring
    to each other.
    """
    below = [0, *(stage.up for stage in stages)]
    unpacked = [0, *(stage.unpacked for stage in stages)]
    return [
        (stage.states + stage.kept + (local.depth + 1) * below[i] // local.parts + unpacked[i])
        + (SEND_BUFFERS * stage.up // local.parts + local.lag * (i + 1) * stage.down)
        + _meeting_memory(stage.parameters, local, replicas)
        for i, stage in enumerate(stages)
    ]


def _meeting_memory(parameters: int, local: LocalRun, replicas: int) -> int:
    """Bytes of a block's part in meetings: its vector, the outer copy, and buffers of messages."""
    if replicas == 1:
        return 0
    vectors = 1 if local.gradients else 4  # outer weights, their momentum, and what was brought
    buckets = bucket_count(parameters)
    slices = (replicas - 1) * (buckets + 1 + SEND_BUFFERS)
    return vectors * parameters + slices * (parameters // (replicas * buckets))


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
