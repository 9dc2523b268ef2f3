"""Losses over large vocabularies, a chunk of rows at a time: the scores of all rows never exist at once."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from counterflow.algorithms.rule import BlockContext, Payload
from counterflow.models.head import split_output_layer

WHOLE = 1 << 24
"""So many scores, rows times classes, are computed at once: 64 MB in float32, and again for each of their gradients."""
_CHUNK = 1 << 22
"""Scores of a chunk, where there are more in all."""


def is_chunked(rows: int, classes: int) -> bool:
    """True if the scores of so many rows are computed in chunks."""
    return rows * classes > WHOLE


def mean_of_rows(
    means: Callable[..., tuple[Tensor, ...]], rows: Sequence[Tensor], parameters: Sequence[Tensor], classes: int
) -> tuple[Tensor, ...]:
    """Means over all rows, of which the first, a loss, has a gradient in ``rows`` and ``parameters``.

    With more than `WHOLE` scores, ``means`` is called for a chunk of rows after another, and the gradients of each are
    computed at once: as many operations, and memory for the scores of one chunk. The result is that of one call up to
    rounding. Gradients of gradients are not supported.

    Args:
        means: Called with rows and parameters; returns scalars, each a mean over these rows. It keeps nothing.
        rows: Tensors ``[R, ..]``.
        parameters: Tensors that all rows share, such as a weight.
        classes: Scores that ``means`` computes for each row.
    """
    count = len(rows[0])
    if not is_chunked(count, classes):
        return means(*rows, *parameters)
    found: tuple[Tensor, ...] = _ChunkedMean.apply(means, max(1, _CHUNK // classes), len(rows), *rows, *parameters)
    return found


class SplitTop:
    """The top block without its output layer, for batches whose scores would take much memory: nobody is above it."""

    def __init__(self, context: BlockContext) -> None:
        """Splits nothing if the block is not the top, or does not end in a linear layer."""
        self._parts = split_output_layer(context.module, context.shape) if context.is_top else None
        self._scores = prod(context.task.label_shape) * context.classes

    def parts(self, message: Payload) -> tuple[nn.Module, list[nn.Parameter]] | None:
        """The block up to its last features, and the weight and bias after them; None if scores are computed at once.

        ``message`` is what enters the block from below.
        """
        if self._parts is None or not is_chunked(len(message[0]), self._scores):
            return None
        features, output = self._parts
        return features, list(output.parameters())


class _ChunkedMean(torch.autograd.Function):
    """Computes gradients in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, means: Callable[..., tuple[Tensor, ...]], size: int, split: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        count, wanted = len(tensors[0]), ctx.needs_input_grad[3:]
        gradients = [torch.zeros_like(tensor) if wants else None for tensor, wants in zip(tensors, wanted, strict=True)]
        totals: list[Tensor] = []
        for start in range(0, count, size):
            part = slice(start, start + size)
            chunk = [(tensor[part] if i < split else tensor).detach() for i, tensor in enumerate(tensors)]
            for tensor, wants in zip(chunk, wanted, strict=True):
                tensor.requires_grad_(wants)
            with torch.enable_grad():
                loss, *others = means(*chunk)
            share = len(chunk[0]) / count
            if any(wanted):
                leaves = [tensor for tensor, wants in zip(chunk, wanted, strict=True) if wants]
                found = iter(torch.autograd.grad(loss, leaves, torch.full_like(loss, share)))
                for i, gradient in enumerate(gradients):
                    if gradient is not None:
                        (gradient[part] if i < split else gradient).add_(next(found))
            values = [share * value.detach() for value in (loss, *others)]
            totals = values if not totals else [total + value for total, value in zip(totals, values, strict=True)]
        ctx.save_for_backward(*[gradient for gradient in gradients if gradient is not None])
        ctx.wanted = wanted
        ctx.mark_non_differentiable(*totals[1:])
        return tuple(totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return None, None, None, *[next(saved) * gradient if wants else None for wants in ctx.wanted]
