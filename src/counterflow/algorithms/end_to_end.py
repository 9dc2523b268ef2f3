"""End-to-end references (section 3.4 of the design): the same blocks, trained by a gradient through all of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from counterflow.config import AlgorithmConfig
from counterflow.models.feedback_alignment import apply_feedback_alignment


class EndToEnd(ABC):
    """What is changed in a network before it is trained end to end."""

    Config: ClassVar[type[AlgorithmConfig]]

    @staticmethod
    @abstractmethod
    def convert(network: nn.Sequential, seed: int) -> None:
        """Change the modules of ``network`` in place."""


@dataclass(kw_only=True)
class BackpropConfig(AlgorithmConfig):
    name: str = "bp"


class Backprop(EndToEnd):
    """The true gradient."""

    Config = BackpropConfig

    @staticmethod
    def convert(network: nn.Sequential, seed: int) -> None:
        """Nothing to change."""


@dataclass(kw_only=True)
class FeedbackAlignmentConfig(AlgorithmConfig):
    name: str = "fa"


class FeedbackAlignment(EndToEnd):
    """Fixed random feedback weights in the backward pass of every convolution and linear layer."""

    Config = FeedbackAlignmentConfig

    @staticmethod
    def convert(network: nn.Sequential, seed: int) -> None:
        apply_feedback_alignment(network, seed)
