"""Transformer encoder for sequences of tokens."""

import torch
from torch import Tensor, nn

from counterflow.config import TransformerConfig


class Embedding(nn.Module):
    """Learnt tokens plus learnt positions: int64 ``[B, length]`` to ``[B, length, width]``."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(tokens)
        return embedded + self.positions


def transformer(config: TransformerConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Embedding, ``config.layers`` encoder layers ``[B, T, width]``, and an output layer ``[B, T, classes]``.

    ``input_shape`` is ``(T,)``. The vocabulary is that of the output, ``classes`` tokens; every position sees all.
    """
    (length,) = input_shape
    encoders = [
        nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.hidden,
            config.dropout,
            # As a function: with the name, torch evaluates by a fused operation over the parameters of the layers
            # inside, past whatever stands in for those layers in feedback alignment.
            activation=torch.relu,
            batch_first=True,
            norm_first=True,
        )
        for _ in range(config.layers)
    ]
    output = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, classes))
    return nn.Sequential(Embedding(classes, length, config.width), *encoders, output)
