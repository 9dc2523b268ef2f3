"""Buffer of the messages of an edge that may have to be sent again."""

import tempfile
from collections import deque
from typing import IO

import torch
from torch import Tensor

from counterflow.message import MessageKind, Tag


def order(tag: Tag) -> tuple[int, bool, int]:
    """Sort key of the tags of one edge, in the order of its messages: a test batch comes after its training batch."""
    return tag.n, tag.kind in (MessageKind.TEST, MessageKind.PREDICTION), tag.e


class ReplayBuffer:
    """Queue of the messages of one edge, which can be read at any position. Not for several threads at a time.

    Up to ``max_bytes`` bytes are held in memory; beyond that, the oldest messages are in files without a name.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._messages: deque[tuple[Tag, Tensor | tuple[IO[bytes], int, int]]] = deque()
        """The oldest messages as file, position and length. A file is deleted with the last message that is in it."""
        self._first = 0
        """Messages that were dropped."""
        self._newest_dropped: Tag | None = None
        self._in_file = 0
        self.held = 0
        """Bytes in memory."""
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        """Messages so far, including those that were dropped."""
        return self._first + len(self._messages)

    def append(self, tag: Tag, buffer: Tensor) -> None:
        """Add a message; ``buffer``, uint8, must not be changed afterwards."""
        self._messages.append((tag, buffer))
        self.held += buffer.numel()
        while self.held > self._max_bytes and self._in_file < len(self._messages) - 1:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="counterflow-replay-")  # noqa: SIM115
        tag, buffer = self._messages[self._in_file]
        assert isinstance(buffer, Tensor)
        position = self._file.seek(0, 2)
        self._file.write(buffer.numpy().data)
        self._messages[self._in_file] = tag, (self._file, position, buffer.numel())
        self._in_file += 1
        self.held -= buffer.numel()

    def message(self, i: int) -> tuple[Tag, Tensor]:
        """Message ``i`` of all so far, which must not be dropped."""
        tag, where = self._messages[i - self._first]
        if isinstance(where, Tensor):
            return tag, where
        file, position, nbytes = where
        file.seek(position)
        buffer = torch.empty(nbytes, dtype=torch.uint8)
        buffer.numpy()[:] = memoryview(file.read(nbytes))
        return tag, buffer

    @property
    def first(self) -> int:
        """Position of the oldest message that is not dropped, or of the next one."""
        return self._first

    def reaches(self, tag: Tag) -> bool:
        """True if no message from ``tag`` on was dropped."""
        return self._newest_dropped is None or order(tag) > order(self._newest_dropped)

    def drop(self, tag: Tag, position: int) -> None:
        """Drop all messages that are both before ``tag`` and before ``position``."""
        while self._messages and self._first < position and order(self._messages[0][0]) < order(tag):
            self._newest_dropped, where = self._messages.popleft()
            self._first += 1
            if isinstance(where, Tensor):
                self.held -= where.numel()
            else:
                self._in_file -= 1
        self._file = None  # a new one comes next, or this one would grow forever
