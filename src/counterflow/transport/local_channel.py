"""Channel between two blocks of one process."""

from collections import deque

from counterflow.message import MessageError, Tag
from counterflow.topology import Edge
from counterflow.transport.channel import Payload


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
