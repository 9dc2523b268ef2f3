"""A network as a plan sees it: what each of its layers takes, alone and as the end of a block pair."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a block pair takes beyond its layers, as far as it depends on where it ends: latent head, loss, feedback.

    Seconds and bytes of one update batch.
    """

    target: float = 0.0
    """To read a target and make the one for the block below."""
    forward: float = 0.0
    learn: float = 0.0
    parameters: int = 0
    """Bytes of these."""
    kept: int = 0
    """Bytes from forward to learn."""
    up: int = 0
    """Bytes of the message for the block above."""
    down: int = 0
    """Bytes of a target message from there."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Seconds and bytes of one update batch."""

    forward: float
    backward: float
    """With the gradient of what enters it."""
    entrance: float = 0.0
    """Part of this that is spared at the bottom of a block, from which no gradient goes down."""
    update: float = 0.0
    fixed_forward: float = 0.0
    """Part that a micro-batch takes whatever its size."""
    fixed_backward: float = 0.0
    parameters: int = 0
    """Bytes of these."""
    kept: int = 0
    """Bytes from forward to backward: its output, and what was made on the way to it."""
    output: int = 0
    """Bytes of its output, and of the gradient for it."""
    head: Head = Head()


@dataclass(frozen=True)
class Network:
    """``layers`` bottom to top, for update batches of ``batch`` samples."""

    layers: Sequence[Layer]
    batch: int
    copies: int = 4
    """Tensors for each parameter: itself, its gradient, and what the optimizer keeps."""
