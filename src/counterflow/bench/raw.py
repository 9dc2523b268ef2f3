"""What a channel is compared with: isend and irecv of gloo, with as many buffers, and as many receives posted ahead.

The ends are handled as those of a channel are. What crosses is bare bytes: no header is written or checked, nothing is
copied into a buffer or looked at, and the thread that computes waits itself.
"""

from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from counterflow.message import Tag
from counterflow.transport import Payload

_SENDING = 2
"""Buffers of a sender, as those of a channel."""


def open_group(timeout: float) -> Any:
    """A group of its own for one direction between two ranks, whose waits last ``timeout`` seconds at most; both call
    this at the same time."""
    group = dist.new_group([0, 1], backend="gloo", timeout=timedelta(seconds=timeout))
    assert isinstance(group, dist.ProcessGroup), "both ranks are in it"
    dist.all_reduce(torch.zeros(1), group=group)
    return group


class RawSender:
    def __init__(self, group: Any, peer: int, nbytes: int) -> None:
        self._group = group
        self._peer = peer
        self._free = deque(torch.ones(nbytes, dtype=torch.uint8) for _ in range(_SENDING))
        self._under_way: deque[tuple[torch.Tensor, Any]] = deque()

    def send(self, tag: Tag, tensors: Payload) -> None:
        if not self._free:
            self._complete()
        buffer = self._free.popleft()
        self._under_way.append((buffer, dist.isend(buffer, self._peer, group=self._group)))

    def _complete(self) -> None:
        buffer, work = self._under_way.popleft()
        work.wait()
        self._free.append(buffer)

    def close(self) -> None:
        while self._under_way:
            self._complete()


class RawReceiver:
    """``count`` messages will come."""

    def __init__(self, group: Any, peer: int, nbytes: int, depth: int, count: int) -> None:
        self._group = group
        self._peer = peer
        self._count = count
        self._posted: deque[tuple[torch.Tensor, Any]] = deque()
        self._held: deque[torch.Tensor] = deque()
        for _ in range(depth + 1):
            self._post(torch.zeros(nbytes, dtype=torch.uint8))

    def _post(self, buffer: torch.Tensor) -> None:
        if self._count:
            self._count -= 1
            self._posted.append((buffer, dist.irecv(buffer, self._peer, group=self._group)))

    def receive(self, tag: Tag) -> Payload:
        buffer, work = self._posted.popleft()
        work.wait()
        self._held.append(buffer)
        return (buffer,)

    def release(self) -> None:
        self._post(self._held.popleft())

    def close(self) -> None:
        assert not self._posted, "all messages were taken"
