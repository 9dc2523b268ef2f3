"""Meetings of the copies of a block in several replicas: one vector, summed up slice by slice in their order.

A meeting is a reduce-scatter by ordered sums, and an all-gather: copy r sums up slice r of the vectors of all copies,
from copy 0 to the last one, and sends the mean to each. So no bit depends on who carries what, or on who comes first.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.rule import LocalRule
from counterflow.config import SyncConfig


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
    """One copy's part in the meetings of the copies of its block."""

    def __init__(self, rule: LocalRule, replica: int, replicas: int) -> None:
        """Raises ``ValueError`` if ``rule`` learns parameters that are not float32."""
        self.rule = rule
        self.replica = replica
        self.parameters = FlatTensors([p for p in rule.parameters() if p.requires_grad])
        self.moments = FlatTensors(rule.running_buffers())
        for tensor in (*self.parameters.tensors, *self.moments.tensors):
            if tensor.dtype != torch.float32:
                raise ValueError(f"replicas={replicas}: a parameter is of {tensor.dtype}, allowed is torch.float32")
        size = self.parameters.size + self.moments.size
        self.slices = [slice(r * size // replicas, (r + 1) * size // replicas) for r in range(replicas)]
        """The slice of the vector that each copy sums up."""
        self._vector = torch.empty(0)

    def length(self, replica: int) -> int:
        """Numbers in the slice of ``replica``."""
        part = self.slices[replica]
        return int(part.stop - part.start)

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Its parts of the parameters and of the running buffers."""
        return vector[: self.parameters.size], vector[self.parameters.size :]

    @torch.no_grad()
    def scatter(self, resumed: bool) -> list[Tensor]:
        """The slices of what this copy brings to a meeting; ``resumed`` says that a checkpoint holds it.

        The slices stay as they are until the sums are there.
        """
        device = self.parameters.tensors[0].device if self.parameters.tensors else "cpu"
        self._vector = torch.empty(self.slices[-1].stop, device=device)
        self._fill(self._vector, resumed)
        return [self._vector[part] for part in self.slices]

    @torch.no_grad()
    def reduce(self, others: Sequence[Tensor]) -> Tensor:
        """The mean over all copies of this one's slice; ``others`` are those of all other copies, in their order."""
        own = self._vector[self.slices[self.replica]]
        in_order = [*others[: self.replica], own, *others[self.replica :]]
        mean = in_order[0].clone()
        for part in in_order[1:]:
            mean += part
        mean /= len(self.slices)
        own.copy_(mean)
        return mean

    @torch.no_grad()
    def gather(self, n: int, others: Sequence[Tensor]) -> None:
        """Learn from the means after batch ``n``; ``others`` are the slices of all other copies, in their order."""
        places = [part for replica, part in enumerate(self.slices) if replica != self.replica]
        for place, mean in zip(places, others, strict=True):
            self._vector[place] = mean
        mean, self._vector = self._vector, torch.empty(0)
        self._learn(n, mean)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within it, the rule has the weights by which it is evaluated."""
        yield

    def finish(self) -> None:  # noqa: B027  # there is nothing to do where copies are equal
        """Leave the rule with the weights by which it is evaluated."""

    @abstractmethod
    def _fill(self, vector: Tensor, resumed: bool) -> None: ...

    @abstractmethod
    def _learn(self, n: int, mean: Tensor) -> None: ...


class GradientSync(ReplicaSync):
    """``sync.mode=gradients``: the copies step by the mean of their gradients, and stay equal bit by bit.

    The rule's optimizers do not step in its own update: they wait for the meeting. Running buffers become their mean.
    """

    def __init__(self, rule: LocalRule, replica: int, replicas: int) -> None:
        super().__init__(rule, replica, replicas)
        self._optimizers = [module for module in rule.modules() if isinstance(module, BlockOptimizer)]
        for optimizer in self._optimizers:
            optimizer.waits = True

    def _fill(self, vector: Tensor, resumed: bool) -> None:
        assert not resumed, "no meeting is under way at a checkpoint"
        gradients, moments = self.split(vector)
        for parameter, part in self.parameters.views(gradients):
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad)
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

    def _fill(self, vector: Tensor, resumed: bool) -> None:
        if resumed:
            vector.copy_(self._outer.brought)
            return
        parameters, moments = self.split(vector)
        self.parameters.read(parameters)
        self.moments.read(moments)
        self._outer.brought.copy_(vector)

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
