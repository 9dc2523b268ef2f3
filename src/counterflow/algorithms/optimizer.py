"""Optimizers of one block, with learning rates that are functions of the batch index alone."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from counterflow.config import SGD, AdamW, OptimizerConfig


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
            return warm * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            return warm * (1.0 - progress)
        case _:
            return warm


class BlockOptimizer(nn.Module):
    """Updates one set of parameters, which may be empty. All it keeps is the state of torch's optimizer.

    A module without parameters of its own, so that the ``state_dict`` of a rule holds its optimizers too.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], config: OptimizerConfig, batches: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.observe: Callable[[str, int, float, float], object] | None = None
        """Called after every ``backward`` and ``update`` with the batch, and start and end in ``perf_counter``."""
        self._config = config
        self._batches = batches
        self._lr = config.lr * scale
        parameters = list(parameters)
        self.torch = _build(parameters, config) if parameters else None

    def backward_and_step(self, loss: Tensor, part: BatchPart) -> None:
        """Add the gradients of ``loss``, the mean over this part of the batch, and update after the last part."""
        self.backward(loss if part.count == 1 else loss / part.count, part.n)
        if part.is_last:
            self.step(part.n)

    def backward(self, output: Tensor, n: int, gradient: Tensor | None = None) -> None:
        """Add to the gradients that of ``output``, in which it is ``gradient``; a scalar has the gradient 1."""
        if not output.requires_grad:  # nothing below it has parameters
            return
        start = perf_counter()
        torch.autograd.backward(output, gradient)
        if self.observe is not None:
            self.observe("backward", n, start, perf_counter())

    def step(self, n: int) -> None:
        """One update with the gradients so far, which are dropped afterwards."""
        if self.torch is None:
            return
        start = perf_counter()
        for group in self.torch.param_groups:
            group["lr"] = self._lr * lr_factor(self._config, n, self._batches)
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        if self.observe is not None:
            self.observe("update", n, start, perf_counter())

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.torch is None else self.torch.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if self.torch is not None:
            self.torch.load_state_dict(state)


def _build(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    match config:
        case SGD():
            return torch.optim.SGD(
                parameters,
                config.lr,
                config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.nesterov,
                fused=True,
            )
        case AdamW():
            first, second = config.betas
            return torch.optim.AdamW(
                parameters, config.lr, (first, second), weight_decay=config.weight_decay, fused=True
            )
        case _:
            raise ValueError(f"optimizer={config.name}: allowed are sgd, adamw")
