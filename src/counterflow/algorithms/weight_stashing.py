"""Backprop under PipeDream's weight stashing (Narayanan et al., arXiv 1806.03377): every gradient is that of its own
forward pass.

With ``w_k(t)`` the weights of block k after t updates and ``d_k = lag (N - k)`` the batches between a batch and its
gradient, block k sends batch n up with ``w_k(max(0, n - d_k))``, and its update is

    w_k(n + 1) = w_k(n) + step( dl(n) / dw_k  at  w_1(max(0, n - d_1)), .., w_N(n) )

where ``l(n)`` is the loss of batch n (there, "effective learning"; ``lag`` 1 gives the ``N - k + 1`` batches in flight
of its 1F1B). All blocks are differentiated at the weights by which they computed, so the gradient is exact for these;
they are old, and they differ from block to block, as "vertical sync" is left out.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import BlockContext, LocalRule, Metrics, Payload
from counterflow.algorithms.stale_gradient import StaleGradient, StaleGradientRule, TrueGradient

Weights = Mapping[str, Tensor]
"""Learning parameters of a block by name, as leaves of autograd."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Pass:
    """A forward pass whose gradient has not come."""

    weights: Weights
    source: Tensor
    output: Tensor


class StashedGradientRule(StaleGradientRule):
    """A block that keeps, for every batch in flight, its weights of back then and what autograd saved with them.

    Batches between which nothing was learnt share one copy of the weights. The top block needs none: its gradient comes
    before its next update. Buffers are not stashed: those that a forward pass changes, such as averages of batch norm,
    do not take part in it.
    """

    def __init__(self, context: BlockContext, true_gradient: TrueGradient, smoothing: float) -> None:
        super().__init__(context, true_gradient, smoothing)
        self._passes: deque[_Pass | Weights] = deque()
        """Passes of all batches in flight; after a restart, their weights alone."""
        self._newest: Weights | None = None
        """A copy of the weights that the block has now, if there is one."""
        self._learning = {name: p for name, p in self.block.named_parameters() if p.requires_grad}

    @property
    def stashed(self) -> Sequence[Weights]:
        """The weights of each batch in flight, the oldest first; those of one version are the same tensors."""
        return [kept.weights if isinstance(kept, _Pass) else kept for kept in self._passes]

    def forward_message(self, message: Payload) -> Payload:
        if self._newest is None:
            self._newest = {} if self._top else stash(self._learning)
        kept = self._run(self._newest, message)
        self._passes.append(kept)
        return (kept.output.detach(),)

    def backward(self, part: BatchPart, message: Payload, gradient: Payload) -> tuple[Payload, Metrics]:
        kept = self._passes.popleft()
        if not isinstance(kept, _Pass):
            buffers = {name: buffer.clone() for name, buffer in self.block.named_buffers()}  # they have seen the batch
            kept = self._run(kept, message, buffers)
        # Within it too, as layers under engine.recompute compute again.
        metrics = _with_state(self.block, kept.weights, lambda: self._differentiate(part.n, kept.output, gradient))
        for name, weight in kept.weights.items():
            self._learning[name].grad, weight.grad = weight.grad, None
        self._step(part.n, metrics)
        self._newest = None
        return (() if kept.source.grad is None else (kept.source.grad,)), metrics

    def get_extra_state(self) -> list[dict[str, Tensor]]:
        return [{name: weight.detach() for name, weight in weights.items()} for weights in self.stashed]

    def set_extra_state(self, state: list[dict[str, Tensor]]) -> None:
        self._passes = deque(
            {name: _leaf(weight.to(self._learning[name].device)) for name, weight in own.items()} for own in state
        )
        self._newest = None

    @torch.enable_grad()
    def _run(self, weights: Weights, message: Payload, buffers: Weights | None = None) -> _Pass:
        source = message[0].detach().requires_grad_(message[0].is_floating_point())
        output = _with_state(self.block, {**weights, **(buffers or {})}, lambda: self.block(source))
        return _Pass(weights, source, output)


def stash(weights: Mapping[str, nn.Parameter]) -> Weights:
    """A copy of ``weights``."""
    return {name: _leaf(weight.detach().clone()) for name, weight in weights.items()}


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


class _Scope(nn.Module):
    """A block, and any function of it: what ``functional_call`` takes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, function: Callable[[], object]) -> object:
        return function()


def _with_state(block: nn.Module, state: Weights, function: Callable[[], T]) -> T:
    """The result of ``function``, during which ``block`` has the parameters and buffers ``state``."""
    if not state:
        return function()
    result: T = functional_call(_Scope(block), {f"block.{name}": value for name, value in state.items()}, (function,))
    return result


class WeightStashing(StaleGradient):
    """Backprop under ``schedule=pipedream``."""

    def rule(self, block: int) -> LocalRule:
        return StashedGradientRule(self.context.block(block), self._true_gradient, self._smoothing)
