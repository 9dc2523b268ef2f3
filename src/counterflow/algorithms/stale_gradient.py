"""Backprop with a pipeline "added directly" (the AL slides): every gradient is taken with whatever weights stand."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.rule import LocalRule, MessageSpec, Metrics, Payload, RuleSet, Shape, Target, Task
from counterflow.config import OptimizerConfig

TrueGradient = Callable[[int, int], Sequence[Tensor] | None]
"""``(n, block)`` to the gradient of batch n in the block's parameters, at the weights that all blocks have now; None
where it is not to be measured."""


class StaleGradientRule(LocalRule):
    """A block whose gradients come late. Up goes ``a_k``, down comes the gradient in ``a_k``; labels at the top.

    Backward recomputes the forward pass of the block with its present weights on the activation of back then: several
    batches are in flight, and no weights are kept for them. Statistics of batch norm see every batch twice.
    """

    def __init__(
        self,
        number: int,
        block: nn.Module,
        top: bool,
        optimizer: OptimizerConfig,
        batches: int,
        true_gradient: TrueGradient,
    ) -> None:
        super().__init__()
        self.block = block
        self._number = number
        self._top = top
        self._optimizer = BlockOptimizer(block.parameters(), optimizer, batches)
        self._true_gradient = true_gradient

    @torch.no_grad()
    def forward_message(self, message: Payload) -> Payload:
        return (self.block(message[0]),)

    def backward(self, n: int, message: Payload, gradient: Payload) -> tuple[Payload, Metrics]:
        x = message[0].requires_grad_(message[0].is_floating_point())
        a = self.block(x)
        metrics: dict[str, Tensor] = {}
        if self._top:
            loss = F.cross_entropy(a.flatten(0, -2), gradient[0].flatten())
            metrics = {"loss": loss.detach(), "accuracy": (a.argmax(-1) == gradient[0]).float().mean()}
            self._optimizer.backward(loss, n)
        else:
            self._optimizer.backward(a, n, gradient[0])
        true = self._true_gradient(n, self._number)
        if true is not None:
            metrics["update_error"] = _relative_error([p.grad for p in self.block.parameters()], true)
        self._optimizer.step(n)
        return (() if x.grad is None else (x.grad,)), metrics

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Tensor | None]:
        a = self.block(message[0])
        return (a,), a.argmax(-1) if self._top else None

    @property
    def inference_modules(self) -> Sequence[nn.Module]:
        return (self.block,)


def _relative_error(ours: Sequence[Tensor | None], true: Sequence[Tensor]) -> Tensor:
    """``|| g - g_true || / || g_true ||`` over all parameters of a block."""
    pairs = [(g, t) for g, t in zip(ours, true, strict=True) if g is not None]
    difference = torch.stack([(g - t).square().sum() for g, t in pairs]).sum().sqrt()
    return difference / torch.stack([t.square().sum() for _, t in pairs]).sum().sqrt()


class StaleGradient(RuleSet):
    """Backprop under ``schedule=naive``."""

    def __init__(
        self,
        optimizer: OptimizerConfig,
        blocks: Sequence[nn.Module],
        shapes: Sequence[Shape],
        task: Task,
        batches: int,
        true_gradient: TrueGradient,
    ) -> None:
        self._optimizer = optimizer
        self._blocks = blocks
        self._shapes = shapes
        self._task = task
        self._batches = batches
        self._true_gradient = true_gradient

    def rule(self, block: int) -> LocalRule:
        top = block == len(self._blocks)
        return StaleGradientRule(
            block, self._blocks[block - 1], top, self._optimizer, self._batches, self._true_gradient
        )

    def activation(self, block: int, batch: int) -> MessageSpec:
        return (((batch, *self._shapes[block - 1]), torch.float32),)

    def test_activation(self, block: int, batch: int) -> MessageSpec:
        return self.activation(block, batch)

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        return self.activation(block, batch)

    def summarize(self, figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The cross entropy at the top, and the mean update error of the blocks where it was measured."""
        errors = [block["update_error"] for block in figures if "update_error" in block]
        mean = {"update_error": sum(errors) / len(errors)} if errors else {}
        return {"loss": figures[-1]["loss"], **mean}
