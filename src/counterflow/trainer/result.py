"""Result of a `Trainer.fit`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FitResult:
    """Summary on every rank, weights on rank 0."""

    summary: Mapping[str, Any]
    """The content of ``summary.json``."""
    is_main: bool
    """This is rank 0, which has the weights."""
    _state: Mapping[str, Tensor] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """sha256 over all parameters and buffers: equal fingerprints mean equal bits."""
        return str(self.summary["fingerprint"])

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy of the network on the test data; None if there was none."""
        return self.summary["test_accuracy"]  # type: ignore[no-any-return]

    @property
    def validation_accuracy(self) -> float | None:
        """Accuracy of the network on held-out training data; None if there was none."""
        return self.summary["validation_accuracy"]  # type: ignore[no-any-return]

    @property
    def block_accuracy(self) -> list[float | None] | None:
        """Test accuracy of every block by its own prediction, bottom to top."""
        return self.summary["block_accuracy"]  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Tensor]:
        """The network's parameters and buffers on the CPU, under their original names. No collective.

        Raises:
            RuntimeError: This is not rank 0.
        """
        if not self.is_main:
            raise RuntimeError("state_dict: the weights are on rank 0, see is_main")
        return dict(self._state)

    def save(self, path: str | Path) -> None:
        """Write `state_dict` to ``path`` with ``torch.save``; ranks other than 0 write nothing."""
        if self.is_main:
            torch.save(self.state_dict(), path)
