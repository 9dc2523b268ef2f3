"""Feedback blocks ``g_k``: maps from the code book of block k to that of block k-1."""

import torch
from torch import Tensor, nn

from counterflow.config import FeedbackConfig


def centre(codes: Tensor, norm: float) -> Tensor:
    """Centre codes ``[C, d]`` over the classes, then scale them to the root mean square norm ``norm``.

    A softmax over classes ignores the mean code. Without centring, a chain of feedback blocks would map all classes to
    almost the same code.
    """
    centred = codes - codes.mean(0)
    return centred * (norm / centred.square().sum(1).mean().clamp_min(1e-12).sqrt())


def _skip(above: int, below: int) -> Tensor:
    """Weight ``[below, above]``: the identity, or a (semi-)orthogonal matrix if the widths differ."""
    weight = torch.empty(below, above)
    return nn.init.eye_(weight) if above == below else nn.init.orthogonal_(weight)


class Feedback(nn.Module):
    """Feedback block: maps a code book ``[C, above]`` to a code book ``[C, below]``.

    ``kind: linear`` is one matrix that starts as a skip; ``kind: mlp`` is a fixed skip plus an MLP that starts at zero.
    """

    def __init__(self, above: int, below: int, config: FeedbackConfig) -> None:
        super().__init__()
        self.norm = config.norm
        self.residual: nn.Module | None = None
        if config.kind == "linear":
            self.skip = nn.Parameter(_skip(above, below))
        else:
            self.register_buffer("skip", _skip(above, below))
            last = nn.Linear(config.hidden, below, bias=False)
            nn.init.zeros_(last.weight)
            self.residual = nn.Sequential(nn.Linear(above, config.hidden), nn.ReLU(), last)

    def forward(self, codes: Tensor) -> Tensor:
        below = codes @ self.skip.T
        if self.residual is not None:
            below = below + self.residual(codes)
        return centre(below, self.norm)
