"""Backprop with a pipeline "added directly" (the AL slides): every gradient is taken with whatever weights stand."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import (
    BlockContext,
    LocalRule,
    MessageSpec,
    Metrics,
    Payload,
    Prediction,
    RuleContext,
    RuleSet,
    Target,
)

TrueGradient = Callable[[int, int], Sequence[Tensor] | None]
"""``(n, block)`` to the gradient of batch n in the block's parameters, at the weights that all blocks have now; None
where it is not to be measured."""


class StaleGradientRule(LocalRule):
    """A block whose gradients come late. Up goes ``a_k``, down comes the gradient in ``a_k``; labels at the top.

    Backward recomputes the forward pass of the block with its present weights on the activation of back then: several
    batches are in flight, and no weights are kept for them. Statistics of batch norm see every batch twice.
    """

    def __init__(self, context: BlockContext, true_gradient: TrueGradient, smoothing: float) -> None:
        super().__init__()
        self.block = context.module
        self._number = context.number
        self._top = context.is_top
        self._smoothing = smoothing
        self._optimizer = context.optimizer(self.block.parameters())
        self._true_gradient = true_gradient

    @torch.no_grad()
    def forward_message(self, message: Payload) -> Payload:
        return (self.block(message[0]),)

    def backward(self, part: BatchPart, message: Payload, gradient: Payload) -> tuple[Payload, Metrics]:
        x = message[0].requires_grad_(message[0].is_floating_point())
        metrics = self._differentiate(part.n, self.block(x), gradient)
        self._step(part.n, metrics)
        return (() if x.grad is None else (x.grad,)), metrics

    def _differentiate(self, n: int, a: Tensor, gradient: Payload) -> dict[str, Tensor]:
        """Add the gradients of batch ``n`` from the block's output ``a`` and what came from above; loss and accuracy of
        the top."""
        metrics: dict[str, Tensor] = {}
        if self._top:
            logits, labels = a.flatten(0, -2), gradient[0].flatten()
            loss = F.cross_entropy(logits, labels, label_smoothing=self._smoothing)
            nll = F.cross_entropy(logits.detach(), labels) if self._smoothing else loss.detach()
            metrics = {"loss": nll, "accuracy": (a.argmax(-1) == gradient[0]).float().mean()}
            self._optimizer.backward(loss, n)
        else:
            self._optimizer.backward(a, n, gradient[0])
        return metrics

    def _step(self, n: int, metrics: dict[str, Tensor]) -> None:
        """Update with the gradients of batch ``n``, whose error goes into ``metrics`` where it is measured."""
        true = self._true_gradient(n, self._number)
        if true is not None:
            ours = [p.grad for p in self.block.parameters() if p.requires_grad]
            metrics["update_error"] = _relative_error(ours, true)
        self._optimizer.step(n)

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Prediction | None]:
        a = self.block(message[0])
        return (a,), Prediction.of(a) if self._top else None


def _relative_error(ours: Sequence[Tensor | None], true: Sequence[Tensor]) -> Tensor:
    """``|| g - g_true || / || g_true ||`` over all parameters of a block."""
    pairs = [(g, t) for g, t in zip(ours, true, strict=True) if g is not None]
    difference = torch.stack([(g - t).square().sum() for g, t in pairs]).sum().sqrt()
    return difference / torch.stack([t.square().sum() for _, t in pairs]).sum().sqrt()


class StaleGradient(RuleSet):
    """Backprop under ``schedule=naive``."""

    def __init__(self, context: RuleContext, true_gradient: TrueGradient, smoothing: float) -> None:
        super().__init__(context)
        self._true_gradient = true_gradient
        self._smoothing = smoothing

    def rule(self, block: int) -> LocalRule:
        return StaleGradientRule(self.context.block(block), self._true_gradient, self._smoothing)

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        return self.activation(block, batch)

    def summarize(self, metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The cross entropy at the top, and the mean update error of the blocks where it was measured."""
        errors = [block["update_error"] for block in metrics if "update_error" in block]
        mean = {"update_error": sum(errors) / len(errors)} if errors else {}
        return {"loss": metrics[-1]["loss"], **mean}
