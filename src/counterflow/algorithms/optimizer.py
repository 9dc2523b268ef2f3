"""Optimizers of one block, with learning rates that are functions of the batch index alone."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from counterflow.config import AdamWConfig, OptimizerConfig, SGDConfig


def rate(config: OptimizerConfig, n: int, batches: int) -> float:
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
    """Updates one set of parameters; `step` takes the batch index, so nothing but torch's own state is kept.

    A module without parameters of its own, so that the ``state_dict`` of a rule holds its optimizers too.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], config: OptimizerConfig, batches: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        self._config = config
        self._batches = batches
        self._lr = config.lr * scale
        self.torch = _build(list(parameters), config)

    def step(self, n: int) -> None:
        """One update with the gradients that stand, which are dropped afterwards."""
        for group in self.torch.param_groups:
            group["lr"] = self._lr * rate(self._config, n, self._batches)
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)

    def get_extra_state(self) -> dict[str, Any]:
        return self.torch.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.torch.load_state_dict(state)


def _build(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    match config:
        case SGDConfig():
            return torch.optim.SGD(
                parameters, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
            )
        case AdamWConfig():
            first, second = config.betas
            return torch.optim.AdamW(parameters, config.lr, (first, second), weight_decay=config.weight_decay)
        case _:
            raise ValueError(f"optimizer={config.name}: allowed are sgd, adamw")
