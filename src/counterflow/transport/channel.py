"""Protocols of a channel, whatever carries its messages."""

import re
from typing import Protocol

from torch import Tensor

from counterflow.message import Tag

Payload = tuple[Tensor, ...]


class ChannelError(Exception):
    """A channel that cannot go on: a lost rank, a timeout, or a message that was not agreed on.

    The text names rank, edge and batch.
    """


def gloo_reason(error: Exception) -> str:
    """Cause of a gloo error in one line, without gloo's source file and its advice."""
    return " ".join(re.sub(r"^\[\S+\] ", "", str(error).strip()).split(". ")[0].splitlines())


class Sender(Protocol):
    """Sending end of a FIFO channel."""

    def send(self, tag: Tag, tensors: Payload) -> None:
        """Send ``tensors``, which the caller must not change afterwards. Waits while the channel is full."""

    def close(self) -> None:
        """Wait until all messages have left this process."""


class Receiver(Protocol):
    """Receiving end of a FIFO channel; every message is received exactly once and in order."""

    def receive(self, tag: Tag) -> Payload:
        """Wait for the next message, which must be ``tag``; its tensors are valid until `release`."""

    def release(self) -> None:
        """Free the buffer of the oldest message that was received and not released."""

    def close(self) -> None:
        """Wait until no message of this channel is under way."""
