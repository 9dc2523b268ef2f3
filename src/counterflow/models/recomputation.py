"""Recomputation of a layer's activations in the backward pass, in place of keeping them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(layer: nn.Module) -> None:
    """Have ``layer`` keep its input alone while it trains, and compute its inside again, with the same random numbers,
    when gradients need it. Buffers, such as batch norm's averages, take part once.
    """
    layer.forward = partial(_checkpointed, layer, layer.forward)


def _checkpointed(layer: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not (torch.is_grad_enabled() and layer.training):
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_kept(layer)))


@contextmanager
def _buffers_kept(layer: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in layer.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
