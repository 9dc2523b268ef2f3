"""The channel between two blocks on one process."""

from collections import deque

from counterflow.message import MessageError, Tag
from counterflow.topology import Edge
from counterflow.transport.channel import Payload


class LocalChannel:
    """Both ends of an edge inside a process. Tensors pass by reference.

    It never waits: the merged program of a rank takes a message only after having sent it, so an empty channel is a
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
        """Nothing to give back: the tensors belong to whoever holds them."""

    def close(self) -> None:
        if self._messages:
            raise MessageError(f"{self.edge}: {self._messages[0][0]} was sent and never taken")
