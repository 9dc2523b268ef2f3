"""Meetings of the copies of a block in several replicas: one vector, summed up slice by slice in their order.

A meeting is a reduce-scatter by ordered sums, and an all-gather: copy r sums up slice r of the vectors of all copies,
from copy 0 to the last one, and sends the mean to each. So no bit depends on who carries what, or on who comes first.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.rule import LocalRule
from counterflow.config import SyncConfig

BUCKET = 1 << 20
"""Numbers of a vector that are sent together, at least."""


class FlatTensors:
    """Tensors in the order of one vector, float32 ``[size]``."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        ends = [0]
        for tensor in tensors:
            ends.append(ends[-1] + tensor.numel())
        self.size = ends[-1]
        self._places = [slice(start, end) for start, end in pairwise(ends)]

    def views(self, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Every tensor, and its part of ``vector`` in its own shape."""
        for tensor, place in zip(self.tensors, self._places, strict=True):
            yield tensor, vector[place].view(tensor.shape)

    def read(self, vector: Tensor) -> None:
        """Copy the tensors into ``vector``."""
        for tensor, part in self.views(vector):
            part.copy_(tensor)

    def write(self, vector: Tensor) -> None:
        """Copy ``vector`` into the tensors."""
        for tensor, part in self.views(vector):
            tensor.copy_(part)


class ReplicaSync(ABC):
    """One copy's part in the meetings of the copies of its block.

    The vector has the parameters from last to first, as their gradients come, and then the running buffers. It travels
    in buckets of whole tensors, of `BUCKET` numbers and more.
    """

    def __init__(self, rule: LocalRule, replica: int, replicas: int) -> None:
        """Raises ``ValueError`` if ``rule`` learns parameters that are not float32."""
        self.rule = rule
        self.replica = replica
        self.parameters = FlatTensors([p for p in rule.parameters() if p.requires_grad][::-1])
        self.moments = FlatTensors(rule.running_buffers())
        tensors = [*self.parameters.tensors, *self.moments.tensors]
        for tensor in tensors:
            if tensor.dtype != torch.float32:
                raise ValueError(f"replicas={replicas}: a parameter is of {tensor.dtype}, allowed is torch.float32")
        ends, size = [0], 0
        for tensor in tensors:
            size += tensor.numel()
            if size - ends[-1] >= BUCKET:
                ends.append(size)
        if ends[-1] < size or size == 0:
            ends.append(size)
        self._ends = ends
        self.slices = [
            [
                slice(start + r * (end - start) // replicas, start + (r + 1) * (end - start) // replicas)
                for r in range(replicas)
            ]
            for start, end in pairwise(ends)
        ]
        """Slices of the vector that the copies sum up, a list for every bucket."""
        self._device = tensors[0].device if tensors else torch.device("cpu")
        self._vector = torch.empty(0)
        self._sent = 0
        """Buckets that were sent to the next meeting."""

    @property
    def buckets(self) -> int:
        return len(self.slices)

    def length(self, bucket: int, replica: int) -> int:
        """Numbers in the slice of ``replica``."""
        part = self.slices[bucket][replica]
        return int(part.stop - part.start)

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Its parts of the parameters and of the running buffers."""
        return vector[: self.parameters.size], vector[self.parameters.size :]

    def slice(self, bucket: int, replica: int) -> Tensor:
        """The slice of this copy that ``replica`` sums up. It stays as it is until the sums are there."""
        return self._vector[self.slices[bucket][replica]]

    @torch.no_grad()
    def scatter(self, resumed: bool, send: Callable[[int], None]) -> None:
        """Call ``send`` with every bucket that was not sent yet; ``resumed`` says that a checkpoint holds it."""
        if self._sent == 0:
            self._vector = torch.empty(self._ends[-1], device=self._device)
        self._fill(resumed)
        for bucket in range(self._sent, self.buckets):
            send(bucket)
        self._sent = 0

    @torch.no_grad()
    def reduce(self, bucket: int, others: Sequence[Tensor]) -> Tensor:
        """The mean over all copies of this one's slice; ``others`` are those of all other copies, in their order."""
        own = self.slice(bucket, self.replica)
        in_order = [*others[: self.replica], own, *others[self.replica :]]
        mean = in_order[0].clone()
        for part in in_order[1:]:
            mean += part
        mean /= len(in_order)
        own.copy_(mean)
        return mean

    @torch.no_grad()
    def take(self, bucket: int, others: Sequence[Tensor]) -> None:
        """Keep the means of a bucket; ``others`` are the slices of all other copies, in their order."""
        places = [part for replica, part in enumerate(self.slices[bucket]) if replica != self.replica]
        for place, mean in zip(places, others, strict=True):
            self._vector[place] = mean

    @torch.no_grad()
    def learn(self, n: int) -> None:
        """Learn from the means of all buckets after batch ``n``."""
        mean, self._vector = self._vector, torch.empty(0)
        self._learn(n, mean)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within it, the rule has the weights by which it is evaluated."""
        yield

    def finish(self) -> None:  # noqa: B027  # there is nothing to do where copies are equal
        """Leave the rule with the weights by which it is evaluated."""

    @abstractmethod
    def _fill(self, resumed: bool) -> None:
        """Write the buckets that were not sent yet into the vector."""

    @abstractmethod
    def _learn(self, n: int, mean: Tensor) -> None: ...


class GradientSync(ReplicaSync):
    """``sync.mode=gradients``: the copies step by the mean of their gradients, and stay equal bit by bit.

    The rule's optimizers do not step in its own update: they wait for the meeting. A bucket leaves as soon as its
    gradients are there, while the backward pass goes on. Running buffers become their mean.
    """

    def __init__(self, rule: LocalRule, replica: int, replicas: int) -> None:
        super().__init__(rule, replica, replicas)
        self.send: Callable[[int], None] = lambda bucket: None
        """Sends a bucket during the backward pass."""
        self._optimizers = [module for module in rule.modules() if isinstance(module, BlockOptimizer)]
        for optimizer in self._optimizers:
            optimizer.wait_for_others(self._add_gradient)
        self._missing = self._parameters_by_bucket()

    def _parameters_by_bucket(self) -> list[set[int]]:
        """Ids of the parameters of every bucket whose gradients have not come."""
        missing: list[set[int]] = [set() for _ in self.slices]
        place = 0
        for parameter in self.parameters.tensors:
            missing[min(bisect_right(self._ends, place), self.buckets) - 1].add(id(parameter))
            place += parameter.numel()
        return missing

    @torch.no_grad()
    def _add_gradient(self, parameter: Tensor) -> None:
        """Note that the gradient of ``parameter`` is whole, and send what is complete."""
        for missing in self._missing:
            missing.discard(id(parameter))
        while self._sent < self.buckets - 1 and not self._missing[self._sent]:
            if self._sent == 0:
                self._vector = torch.empty(self._ends[-1], device=self._device)
            self._write(self._ends[self._sent], self._ends[self._sent + 1])
            self._sent += 1
            self.send(self._sent - 1)

    def _fill(self, resumed: bool) -> None:
        assert not resumed, "no meeting is under way at a checkpoint"
        self._write(self._ends[self._sent], self._ends[-1])
        self._missing = self._parameters_by_bucket()

    def _write(self, start: int, end: int) -> None:
        """Write gradients and running buffers between two positions of the vector."""
        gradients, moments = self.split(self._vector)
        place = 0
        for parameter, part in self.parameters.views(gradients):
            if start <= place < end:
                if parameter.grad is None:
                    part.zero_()
                else:
                    part.copy_(parameter.grad)
            place += parameter.numel()
        if end == self._ends[-1]:
            self.moments.read(moments)

    def _learn(self, n: int, mean: Tensor) -> None:
        gradients, moments = self.split(mean)
        for parameter, part in self.parameters.views(gradients):
            if parameter.grad is not None:  # no update of what no loss depends on
                parameter.grad.copy_(part)
        self.moments.write(moments)
        for optimizer in self._optimizers:
            optimizer.step_after_waiting(n)


class OuterWeights(nn.Module):
    """The copy of a block's weights that all replicas agree on, the momentum of its steps, and what this replica
    brought to the last meeting; part of the rule's state."""

    weights: Tensor
    momentum: Tensor
    brought: Tensor

    def __init__(self, parameters: FlatTensors, moments: FlatTensors) -> None:
        super().__init__()
        device = parameters.tensors[0].device if parameters.tensors else "cpu"
        weights = torch.empty(parameters.size + moments.size, device=device)
        with torch.no_grad():
            parameters.read(weights[: parameters.size])
            moments.read(weights[parameters.size :])
        self.register_buffer("weights", weights)
        self.register_buffer("momentum", torch.zeros(parameters.size, device=device))
        self.register_buffer("brought", weights.clone())


class ParameterSync(ReplicaSync):
    """``sync.mode=parameters``: the copies learn alone, and now and then move towards the mean of their weights.

    The outer copy ``w`` takes a step of Nesterov's momentum along ``w - mean`` (DiLoCo, arXiv 2311.08105, algorithm 1);
    with a rate of 1 and no momentum it becomes the mean. Each copy then adds ``w - theta_r``, of the batch after which
    they met, to the weights that it has by now. Evaluation, export and fingerprint use the outer copy; of running
    buffers that is the mean.
    """

    def __init__(self, rule: LocalRule, replica: int, replicas: int, config: SyncConfig) -> None:
        super().__init__(rule, replica, replicas)
        self._config = config
        self._outer = OuterWeights(self.parameters, self.moments)
        rule.add_module("outer", self._outer)

    def _fill(self, resumed: bool) -> None:
        if resumed:
            self._vector.copy_(self._outer.brought)
            return
        parameters, moments = self.split(self._vector)
        self.parameters.read(parameters)
        self.moments.read(moments)
        self._outer.brought.copy_(self._vector)

    def _learn(self, n: int, mean: Tensor) -> None:
        rate, momentum = self._config.outer_lr, self._config.outer_momentum
        means, moments = self.split(mean)
        weights, outer_moments = self.split(self._outer.weights)
        brought, _ = self.split(self._outer.brought)
        if momentum:
            away = weights - means
            self._outer.momentum.mul_(momentum).add_(away)
            weights -= rate * (away + momentum * self._outer.momentum)
        else:
            weights.lerp_(means, rate)
        outer_moments.copy_(moments)
        for (parameter, then), (_, now) in zip(
            self.parameters.views(brought), self.parameters.views(weights), strict=True
        ):
            # Exactly the outer copy where nothing was learnt since.
            parameter.copy_(torch.where(parameter == then, now, parameter + (now - then)))

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        own = torch.empty_like(self._outer.weights)
        with torch.no_grad():
            parameters, moments = self.split(own)
            self.parameters.read(parameters)
            self.moments.read(moments)
            self.finish()
            try:
                yield
            finally:
                self.parameters.write(parameters)
                self.moments.write(moments)

    @torch.no_grad()
    def finish(self) -> None:
        parameters, moments = self.split(self._outer.weights)
        self.parameters.write(parameters)
        self.moments.write(moments)


def replica_sync(rule: LocalRule, replica: int, replicas: int, config: SyncConfig) -> ReplicaSync:
    """The part of ``rule``, the copy of its block in ``replica``, as ``sync.mode`` says."""
    if config.mode == "gradients":
        return GradientSync(rule, replica, replicas)
    return ParameterSync(rule, replica, replicas, config)
