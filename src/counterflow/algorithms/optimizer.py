"""Optimizers of one block, with learning rates that are functions of the batch index alone."""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from counterflow.algorithms.delayed_nesterov import DelayedNesterov
from counterflow.algorithms.muon import OrthogonalMomentum
from counterflow.config import SGD, AdamW, Muon, OptimizerConfig


@dataclass(frozen=True)
class BatchPart:
    """Part ``index`` of ``count`` equal parts of training batch ``n``; the last one ends with the update."""

    n: int
    index: int = 0
    count: int = 1

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


def lr_factor(config: OptimizerConfig, n: int, batches: int) -> float:
    """The learning rate at batch ``n`` of ``batches``, as a multiple of ``optimizer.lr``: warm-up times schedule."""
    warm = min(1.0, (n + 1) / (config.warmup + 1))
    progress = n / batches
    match config.schedule:
        case "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            left = 1.0 - progress
        case _:
            left = 1.0
    return warm * (config.floor + (1.0 - config.floor) * left)


class BlockOptimizer(nn.Module):
    """Updates one set of parameters, which may be empty; frozen ones are left out. All it keeps is the state of torch's
    optimizers.

    A module without parameters of its own, so that the ``state_dict`` of a rule holds its optimizers too.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        config: OptimizerConfig,
        batches: int,
        scale: float = 1.0,
        hidden: Iterable[Tensor] = (),
    ) -> None:
        """``hidden``: those of a forward block that `Muon` takes; it takes 4-dimensional weights anyhow."""
        super().__init__()
        self.observe: Callable[[str, int, Any, Any], object] | None = None
        """Called after every ``backward`` and ``update`` with the batch, and start and end by `now`."""
        self.now: Callable[[], Any] = perf_counter
        self._on_gradient: Callable[[Tensor], None] | None = None
        self._is_last = False
        """A backward pass is under way after which no gradient changes before the update."""
        self._due: int | None = None
        """The batch whose update waits."""
        self._config = config
        self._batches = batches
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        self._torch = _build(learning, config, scale, {id(parameter) for parameter in hidden})

    def wait_for_others(self, on_gradient: Callable[[Tensor], None]) -> None:
        """Leave all updates to `step_after_waiting`, as the gradients of other replicas are missing.

        ``on_gradient`` is called with every parameter whose gradient is whole, during the last backward pass.
        """
        self._on_gradient = on_gradient

        def notify(parameter: Tensor) -> None:
            if self._is_last:
                on_gradient(parameter)

        for optimizer in self._torch:
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                parameter.register_post_accumulate_grad_hook(notify)

    def backward_and_step(self, loss: Tensor, part: BatchPart) -> None:
        """Add the gradients of ``loss``, the mean over this part of the batch, and update after the last part."""
        self._is_last = part.is_last
        self.backward(loss if part.count == 1 else loss / part.count, part.n)
        self._is_last = False
        if part.is_last:
            self.step(part.n)

    def backward(self, output: Tensor, n: int, gradient: Tensor | None = None) -> None:
        """Add to the gradients that of ``output``, in which it is ``gradient``; a scalar has the gradient 1."""
        if not output.requires_grad:  # nothing below it has parameters
            return
        start = self.now()
        torch.autograd.backward(output, gradient)
        if self.observe is not None:
            self.observe("backward", n, start, self.now())

    def squared_norm(self) -> Tensor:
        """Sum of the squares of all gradients so far, a float64 scalar."""
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in self._gradients()]
        return torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)

    def _gradients(self) -> list[Tensor]:
        groups = (group for optimizer in self._torch for group in optimizer.param_groups)
        return [p.grad for group in groups for p in group["params"] if p.grad is not None]

    def step(self, n: int, squared_norm: Tensor | None = None) -> None:
        """One update with the gradients so far, which are dropped afterwards.

        ``squared_norm`` is that of all gradients that ``optimizer.clip`` limits together; None if it is of these alone.
        """
        if not self._torch:
            return
        if self._on_gradient is not None:
            if self._due == n:
                raise RuntimeError("an optimizer steps twice in a batch: allowed with replicas is once")
            self._due = n
            return
        self._update(n, squared_norm)

    def step_after_waiting(self, n: int) -> None:
        """The update of batch ``n``, if `step` was to do it."""
        if self._due == n:
            self._update(n, None)

    def _update(self, n: int, squared_norm: Tensor | None) -> None:
        start = self.now()
        if self._config.clip:
            norm = (self.squared_norm() if squared_norm is None else squared_norm).sqrt()
            scale = (self._config.clip / norm.clamp_min(self._config.clip)).float()
            for gradient in self._gradients():
                gradient.mul_(scale)
        factor = lr_factor(self._config, n, self._batches)
        for optimizer in self._torch:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.observe is not None:
            self.observe("update", n, start, self.now())

    def keep_matrix_products(self) -> None:
        """Leave out all updates but those by matrix products, which are the only ones that are counted."""
        self._torch = [optimizer for optimizer in self._torch if isinstance(optimizer, OrthogonalMomentum)]

    def get_extra_state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self._torch]

    def set_extra_state(self, state: list[dict[str, Any]]) -> None:
        for optimizer, own in zip(self._torch, state, strict=True):
            optimizer.load_state_dict(own)


def _build(
    parameters: list[nn.Parameter], config: OptimizerConfig, scale: float, hidden: Collection[int]
) -> list[torch.optim.Optimizer]:
    """Torch's optimizers of ``parameters``, one for each kind of update; ``hidden`` are ids."""
    match config:
        case SGD():
            groups = _groups(parameters, config.lr * scale, config)
            if config.delay_corrected:
                return [DelayedNesterov(groups, config.lr, config.momentum)] if groups else []
            make = partial(torch.optim.SGD, momentum=config.momentum, nesterov=config.nesterov, fused=True)
            return [make(groups, config.lr)] if groups else []
        case AdamW() if config.delay_corrected:
            groups, betas = _groups(parameters, config.lr * scale, config), (config.betas[0], config.betas[1])
            return [torch.optim.NAdam(groups, config.lr, betas, decoupled_weight_decay=True)] if groups else []
        case AdamW():
            return _adamw(parameters, config.lr * scale, config, config.betas)
        case Muon():
            matrices = [p for p in parameters if id(p) in hidden or p.ndim == 4]
            taken = {id(p) for p in matrices}
            others = _adamw(
                [p for p in parameters if id(p) not in taken], config.adamw_lr * scale, config, config.betas
            )
            if not matrices:
                return others
            groups = _groups(matrices, config.lr * scale, config)
            return [
                OrthogonalMomentum(groups, config.lr, config.momentum, config.nesterov, config.iterations),
                *others,
            ]
        case _:
            raise ValueError(f"optimizer={config.name}: allowed are sgd, adamw, muon")


def _adamw(
    parameters: list[nn.Parameter], lr: float, config: OptimizerConfig, betas: list[float]
) -> list[torch.optim.Optimizer]:
    groups = _groups(parameters, lr, config)
    return [torch.optim.AdamW(groups, lr, (betas[0], betas[1]), fused=True)] if groups else []


def _groups(parameters: list[nn.Parameter], lr: float, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups of torch, none of them empty: weights, then biases and norms, which are vectors."""
    apart = config.bias_lr_scale != 1 or not config.bias_decay
    weights = [p for p in parameters if p.ndim > 1 or not apart]
    vectors = [p for p in parameters if p.ndim <= 1 and apart]
    decay = config.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": weights, "peak_lr": lr, "weight_decay": decay},
        {"params": vectors, "peak_lr": lr * config.bias_lr_scale, "weight_decay": decay if config.bias_decay else 0.0},
    ]
    return [group for group in groups if group["params"]]
