"""Modules whose state comes from training samples, and one of them: whitening of patches."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK = 500
"""Images whose patches are in memory at a time."""


class DataInitialized(nn.Module, ABC):
    """Module of the network's first layer that is initialised from the first training samples.

    Block 1's process calls `initialize` before the first training batch of a run, never when it goes on from a
    checkpoint. What it sets is parameters or buffers, which checkpoints, fingerprints and ``state_dict`` hold.
    """

    @abstractmethod
    def initialize(self, inputs: Tensor) -> None:
        """``inputs`` are the first training samples as they enter the network, ``[M, ...]`` on the CPU: normalised,
        not augmented, the same ones for every seed. A pure function of them."""


def initialize(module: nn.Module, inputs: Callable[[], Tensor]) -> None:
    """Initialise all parts of ``module`` that are `DataInitialized`; ``inputs`` is called once, if there are any."""
    parts = [part for part in module.modules() if isinstance(part, DataInitialized)]
    if parts:
        samples = inputs()
        for part in parts:
            part.initialize(samples)


class Whitening(DataInitialized):
    """Convolution whose frozen filters whiten patches: ``[B, C, H, W]`` to ``[B, 2 C h w, H - h + 1, W - w + 1]``.

    The filters are the eigenvectors of the patches' second moments (not centred), each over the root of its eigenvalue,
    and their negatives; the bias is trained. Page (2018), "How to train your ResNet"; Jordan (arXiv 2404.00498),
    section 3.1, whose weights these are.
    """

    weight: Tensor

    def __init__(self, channels: int, patch: tuple[int, int] = (2, 2), epsilon: float = 5e-4) -> None:
        """``epsilon`` is added to the eigenvalues. Until `initialize`, filters are the pixels of a patch."""
        super().__init__()
        self.patch = patch
        self.epsilon = epsilon
        size = channels * patch[0] * patch[1]
        self.register_buffer("weight", self._filters(torch.eye(size), channels))
        self.bias = nn.Parameter(torch.zeros(2 * size))

    def _filters(self, rows: Tensor, channels: int) -> Tensor:
        return torch.cat((rows, -rows)).view(-1, channels, *self.patch)

    @torch.no_grad()
    def initialize(self, inputs: Tensor) -> None:
        channels = self.weight.shape[1]
        size = channels * self.patch[0] * self.patch[1]
        moments, count = torch.zeros(size, size, dtype=torch.float64), 0
        for images in torch.split(inputs.double(), _CHUNK):
            patches = F.unfold(images, self.patch).transpose(1, 2).reshape(-1, size)
            moments += patches.T @ patches
            count += len(patches)
        values, vectors = torch.linalg.eigh(moments / count)
        rows = vectors.T.flip(0)
        # An eigenvector has no sign of its own: its largest entry is positive.
        rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
        rows = rows / (values.flip(0).clamp(min=0) + self.epsilon).sqrt()[:, None]
        self.weight.copy_(self._filters(rows, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)
