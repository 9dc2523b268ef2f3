"""A network measured on this machine: every layer once, alone and as a block pair of its own."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.rule import MessageSpec, RuleSet
from counterflow.config import SGD, AdamW, OptimizerConfig
from counterflow.engine.job import Job
from counterflow.engine.profile import column_of, message_from_below, pair_time, plain_times
from counterflow.models.partition import best_of, synchronized_ns
from counterflow.planner.network import Head, Layer, Network
from counterflow.topology import Topology

_PART = 8
"""The second size of a batch at which layers are timed is this part of it: what does not shrink with it is fixed."""
_FEWEST = 2
"""Samples of a batch, for batch norm."""


def measure(job: Job, log: Callable[[str], None]) -> Network:
    """Of a job in one block; ``log`` hears what is being done. Nothing of ``job`` changes, nor its generator."""
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        return _measure(job, log)


def _measure(job: Job, log: Callable[[str], None]) -> Network:
    layers, batch = len(job.network), job.config.train.batch_size
    part = max(min(_FEWEST, batch), batch // _PART)
    log("layers, forward and backward")
    whole, less = plain_times(job, batch), plain_times(job, part)
    outwards = plain_times(job, batch, inputs=False)
    fine = replace(job, config=replace(job.config, blocks=layers), topology=Topology(layers, 1))
    column = column_of(fine, [1] * layers)
    found = []
    for i, (forward, backward) in enumerate(whole):
        log(f"layer {i + 1} of {layers}, as a block pair")
        update, kept, output = _update(fine, i), *_plain_bytes(fine, column, i)
        layer = Layer(
            forward=forward / 1e9,
            backward=backward / 1e9,
            entrance=max(0, backward - outwards[i][1]) / 1e9,
            update=update / 1e9,
            fixed_forward=_fixed(forward, less[i][0], batch, part) / 1e9,
            fixed_backward=_fixed(backward, less[i][1], batch, part) / 1e9,
            parameters=_bytes(job.network[i].parameters()),
            kept=kept,
            output=output,
        )
        found.append(replace(layer, head=_head(fine, column, i, layer)))
    return Network(found, batch, _copies(job.config.optimizer))


def _head(job: Job, column: RuleSet, i: int, layer: Layer) -> Head:
    block, batch, top = i + 1, job.config.train.batch_size, i + 1 == len(job.network)
    time = pair_time(job, column, block)
    rule = column.rule(block)
    job.numerics.prepare_module(rule, ())
    message = message_from_below(job, column, block)
    with job.numerics.autocast():
        kept, _ = _kept(rule, message[0], lambda: rule.forward_message(message)[0])
    return Head(
        target=time.target / 1e9,
        forward=max(0.0, time.forward / 1e9 - layer.forward),
        learn=max(0.0, time.learn / 1e9 - (layer.backward - layer.entrance) - layer.update),
        parameters=max(0, _bytes(rule.parameters()) - layer.parameters),
        kept=max(0, kept - layer.kept),
        up=0 if top else _size(column.activation(block, batch)),
        down=0 if top or not job.plan.targets_down else _size(column.target(block, 0, batch)),
    )


def _update(job: Job, i: int) -> int:
    """Nanoseconds of an update of the parameters of layer ``i``."""
    layer = copy.deepcopy(job.network[i])
    job.numerics.prepare_module(layer, ())
    parameters = list(layer.parameters())
    if not parameters:
        return 0
    optimizer = BlockOptimizer(parameters, job.config.optimizer, job.plan.batches)

    def timed() -> tuple[int]:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        start = synchronized_ns(job.device)
        optimizer.step(0)
        return (synchronized_ns(job.device) - start,)

    (update,) = best_of(timed)
    return update


def _plain_bytes(job: Job, column: RuleSet, i: int) -> tuple[int, int]:
    """What layer ``i`` keeps, and its output."""
    layer = copy.deepcopy(job.network[i]).train()
    job.numerics.prepare_module(layer, ())
    source, *_ = message_from_below(job, column, i + 1)
    source = source.detach().requires_grad_(source.is_floating_point())
    with job.numerics.autocast():
        return _kept(layer, source, partial(layer, source))


def _kept(module: nn.Module, source: Tensor, forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Bytes that ``forward`` leaves until a backward pass, its output among them; and of the output, as a message.

    Neither parameters nor ``source``, which are somebody else's.
    """
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()
    note(output)
    for other in (source, *module.parameters(), *module.buffers()):
        storages.pop(other.untyped_storage().data_ptr(), None)
    return sum(storages.values()), 4 * output.numel()


def _fixed(whole: int, less: int, batch: int, part: int) -> float:
    """Of the straight line through both times, where there are no samples; within what either took."""
    if part == batch:
        return 0.0
    return min(float(less), max(0.0, (less * batch - whole * part) / (batch - part)))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _size(specs: MessageSpec) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in specs)


def _copies(config: OptimizerConfig) -> int:
    match config:
        case AdamW():
            return 4
        case SGD(momentum=momentum) if momentum:
            return 3
        case _:
            return 2
