"""Decoder-only transformer for language models: every layer is one entry of the sequence, and no token sees the future.

Pre-norm layers with RMSNorm (Zhang and Sennrich, arXiv 1910.07467), rotary positions (Su et al., arXiv 2104.09864) and
SwiGLU (Shazeer, arXiv 2002.05202), as in Llama (Touvron et al., arXiv 2302.13971).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.config.model import GPTConfig

DEVIATION = 0.02
"""Standard deviation of initial weights, that of GPT-2."""
_BASE = 10000.0
"""Base of the wavelengths of rotary positions."""


class Cache(NamedTuple):
    """Keys and values of the last tokens, ``[B, heads, T, d]`` each."""

    keys: Tensor
    values: Tensor
    tokens: int
    """Tokens so far, which may be more than ``T``."""


class Attention(nn.Module):
    """Causal attention with rotary positions: ``[B, T, width]`` to ``[B, T, width]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.extended(x, None)[0]

    def extended(self, x: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """The output for the first tokens, or for one that follows those of ``cache``; and the cache with them."""
        batch, length, width = x.shape
        assert cache is None or length == 1
        query, key, value = (
            self.inputs(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        before = 0 if cache is None else cache.tokens
        query, key = rotated(query, before), rotated(key, before)
        if cache is not None:
            key, value = torch.cat([cache.keys, key], 2), torch.cat([cache.values, value], 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return output, Cache(key, value, before + length)


def rotated(x: Tensor, first: int = 0) -> Tensor:
    """Queries or keys ``[B, heads, T, d]`` turned by their positions ``first, first + 1, ..``."""
    half = x.shape[-1] // 2
    positions = torch.arange(first, first + x.shape[2], device=x.device, dtype=torch.float32)
    angles = positions[:, None] * _BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)


class SwiGLU(nn.Module):
    """Gated feed-forward part."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.inputs(x).chunk(2, -1)
        output: Tensor = self.output(F.silu(gate) * value)
        return output


class DecoderLayer(nn.Module):
    """Attention and a feed-forward part, each on normalised inputs and added to them: ``[B, T, width]``."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.feedforward_norm = nn.RMSNorm(width)
        self.feedforward = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.extended(x, None)[0]

    def extended(self, x: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """The output for the first tokens, or for one that follows those of ``cache``; and the cache with them."""
        mixed, cache = self.attention.extended(self.attention_norm(x), cache)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.feedforward(self.feedforward_norm(x))), cache


def initialize_decoder(layer: DecoderLayer, layers: int) -> None:
    """Draw the weights of one of ``layers`` layers as GPT-2 does: those that are added to the input are smaller."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim > 1:
            small = (2 * layers) ** -0.5 if name.endswith("output.weight") else 1.0
            nn.init.normal_(parameter, std=DEVIATION * small)


def gpt(config: GPTConfig, input_shape: tuple[int, ...], classes: int) -> Iterator[nn.Module]:
    """Embedding, ``config.layers`` decoder layers ``[B, T, width]``, and an output layer ``[B, T, classes]``.

    The vocabulary of the input is that of the output, ``classes`` tokens. The weights do not depend on the length
    ``input_shape``.
    """
    embedding = nn.Embedding(classes, config.width)
    nn.init.normal_(embedding.weight, std=DEVIATION)
    yield embedding
    for _ in range(config.layers):
        layer = DecoderLayer(config.width, config.heads, config.hidden, config.dropout)
        initialize_decoder(layer, config.layers)
        yield layer
    output = nn.Linear(config.width, classes, bias=False)
    nn.init.normal_(output.weight, std=DEVIATION)
    yield nn.Sequential(nn.RMSNorm(config.width), output)
