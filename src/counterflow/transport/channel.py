"""Channels between blocks: the protocols of all kinds, and the one inside a process."""

import re
from collections import deque
from typing import Protocol

from torch import Tensor

from counterflow.message import MessageError, Tag
from counterflow.topology import Edge

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


class LocalChannel:
    """Both ends of an edge inside a process. Tensors are passed by reference.

    It never waits: the merged program of a rank receives a message only after it was sent, so an empty channel is a
    broken program, not a slow neighbour.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self._messages: deque[tuple[Tag, Payload]] = deque()

    def send(self, tag: Tag, tensors: Payload) -> None:
        self._messages.append((tag, tensors))

    def receive(self, tag: Tag) -> Payload:
        if not self._messages:
            raise MessageError(f"{self.edge}: empty where {tag} was expected")
        found, tensors = self._messages.popleft()
        if found != tag:
            raise MessageError(f"{self.edge}: {found} came where {tag} was expected")
        return tensors

    def release(self) -> None:
        """Do nothing: the receiving block owns the tensors."""

    def close(self) -> None:
        if self._messages:
            raise MessageError(f"{self.edge}: {self._messages[0][0]} was sent and never taken")
