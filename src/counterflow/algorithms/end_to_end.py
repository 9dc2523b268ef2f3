"""End-to-end references: the same blocks, trained by a gradient through all of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from counterflow.config import AlgorithmConfig
from counterflow.models.feedback_alignment import apply_feedback_alignment, original_state


class EndToEnd(AlgorithmConfig, ABC):
    """A reference that ``algorithm=`` or a Trainer can name, by what it changes in a network before it is trained."""

    @abstractmethod
    def convert(self, network: nn.Sequential, seed: int) -> None:
        """Change the modules of ``network`` in place."""

    def original_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` of a changed network under the names that it had before."""
        return dict(state)


@dataclass(kw_only=True)
class Backprop(EndToEnd):
    """The true gradient."""

    name: str = "bp"

    def convert(self, network: nn.Sequential, seed: int) -> None:
        """Nothing to change."""


@dataclass(kw_only=True)
class FeedbackAlignment(EndToEnd):
    """Fixed random feedback weights in the backward pass of every convolution and linear layer."""

    name: str = "fa"

    def convert(self, network: nn.Sequential, seed: int) -> None:
        apply_feedback_alignment(network, seed)

    def original_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return original_state(state)
