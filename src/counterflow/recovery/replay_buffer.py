"""What a rank has sent and may have to send again: every message since the cut from which its neighbour would start."""

import tempfile
from collections import deque
from typing import IO

import torch
from torch import Tensor

from counterflow.message import MessageKind, Tag


def order(tag: Tag) -> tuple[int, bool, int]:
    """Tags of one edge compare as they follow each other: test batches come after the batch that they follow."""
    return tag.n, tag.kind in (MessageKind.TEST, MessageKind.PREDICTION), tag.e


class ReplayBuffer:
    """A queue of messages of one edge that is read at any place. Not for several threads at a time.

    Messages are held in memory up to ``most`` bytes, and the oldest beyond that in files without a name.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._messages: deque[tuple[Tag, Tensor | tuple[IO[bytes], int, int]]] = deque()
        """The oldest ones by file, place and length. A file is gone with the last message that is in it."""
        self._first = 0
        """Messages that are not kept any more."""
        self._newest_forgotten: Tag | None = None
        self._in_file = 0
        self.held = 0
        """Bytes in memory."""
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        """Of all messages so far, those that are not kept any more included."""
        return self._first + len(self._messages)

    def append(self, tag: Tag, buffer: Tensor) -> None:
        """``buffer``, uint8, is not to be changed any more."""
        self._messages.append((tag, buffer))
        self.held += buffer.numel()
        while self.held > self._most and self._in_file < len(self._messages) - 1:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="counterflow-replay-")  # noqa: SIM115
        tag, buffer = self._messages[self._in_file]
        assert isinstance(buffer, Tensor)
        place = self._file.seek(0, 2)
        self._file.write(buffer.numpy().data)
        self._messages[self._in_file] = tag, (self._file, place, buffer.numel())
        self._in_file += 1
        self.held -= buffer.numel()

    def message(self, i: int) -> tuple[Tag, Tensor]:
        """Message ``i`` of all so far, which must still be kept."""
        tag, where = self._messages[i - self._first]
        if isinstance(where, Tensor):
            return tag, where
        file, place, nbytes = where
        file.seek(place)
        buffer = torch.empty(nbytes, dtype=torch.uint8)
        buffer.numpy()[:] = memoryview(file.read(nbytes))
        return tag, buffer

    @property
    def first(self) -> int:
        """The place of the oldest message that is kept, or of the next one."""
        return self._first

    def reaches(self, tag: Tag) -> bool:
        """Whether nothing from ``tag`` on is forgotten."""
        return self._newest_forgotten is None or order(tag) > order(self._newest_forgotten)

    def forget(self, tag: Tag, place: int) -> None:
        """Keep nothing that is before ``tag``, and before ``place`` too."""
        while self._messages and self._first < place and order(self._messages[0][0]) < order(tag):
            self._newest_forgotten, where = self._messages.popleft()
            self._first += 1
            if isinstance(where, Tensor):
                self.held -= where.numel()
            else:
                self._in_file -= 1
        self._file = None  # what comes is written to another one, or this one would grow for ever
