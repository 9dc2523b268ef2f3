"""Transformer encoder for sequences of tokens."""

import torch
from torch import Tensor, nn

from counterflow.config import TransformerConfig


class Embedding(nn.Module):
    """Learned embeddings of tokens plus positions: int64 ``[B, length]`` to ``[B, length, width]``."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(tokens)
        return embedded + self.positions


def transformer(config: TransformerConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Embedding, ``config.layers`` encoder layers ``[B, T, width]``, and an output layer ``[B, T, classes]``.

    ``input_shape`` is ``(T,)``. The vocabulary of the input is that of the output, ``classes`` tokens. Every position
    attends to all others.
    """
    (length,) = input_shape
    encoders = [
        nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.hidden,
            config.dropout,
            # A function, not the name "relu": with the name, torch evaluates by a fused operation on the parameters of
            # the inner layers, which bypasses the modules that replace these layers in feedback alignment.
            activation=torch.relu,
            batch_first=True,
            norm_first=True,
        )
        for _ in range(config.layers)
    ]
    output = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, classes))
    return nn.Sequential(Embedding(classes, length, config.width), *encoders, output)
