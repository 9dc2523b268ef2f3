"""End-to-end references (section 3.4 of the design): the same blocks, trained by a gradient through all of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from counterflow.config import AlgorithmConfig
from counterflow.models.feedback_alignment import apply_feedback_alignment


class Reference(ABC):
    """What is changed in a network before it is trained end to end."""

    Config: ClassVar[type[AlgorithmConfig]]

    @staticmethod
    @abstractmethod
    def transform(network: nn.Sequential, seed: int) -> None:
        """Change the modules of ``network`` in place."""


@dataclass(kw_only=True)
class BackpropConfig(AlgorithmConfig):
    name: str = "bp"


class Backprop(Reference):
    """The true gradient."""

    Config = BackpropConfig

    @staticmethod
    def transform(network: nn.Sequential, seed: int) -> None:
        """Nothing to change."""


@dataclass(kw_only=True)
class FeedbackAlignmentConfig(AlgorithmConfig):
    name: str = "fa"


class FeedbackAlignment(Reference):
    """Fixed random feedback weights in the backward pass of every convolution and linear layer."""

    Config = FeedbackAlignmentConfig

    @staticmethod
    def transform(network: nn.Sequential, seed: int) -> None:
        apply_feedback_alignment(network, seed)
