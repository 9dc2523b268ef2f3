"""Strangers on the ports of a run that trains, and messages that announce more than was agreed."""

import tracemalloc
from contextlib import ExitStack
from typing import cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from counterflow.message import HEADER_BYTES, MessageError, MessageKind, Tag, check_header, pack_header
from counterflow.topology import Edge, Stream
from counterflow.transport import ChannelError, MessageLayout, RemoteReceiver, TensorSpec
from counterflow.transport.buffers import CpuGloo
from counterflow.transport.control import Watchdog
from counterflow.transport.remote import P2PEndpoint
from tests.helpers.strangers import LARGEST, STRANGERS, HostileJob, undisturbed_fingerprint, visit_training


def test_strangers_change_nothing() -> None:
    """All of them, one after the other, which stay until the run has ended."""
    with ExitStack() as stay, HostileJob() as job:
        visit_training(job, list(STRANGERS), stay)
        visited = job.fingerprint()
    assert visited == undisturbed_fingerprint()


TAG = Tag(MessageKind.ACTIVATION, 0)
LAYOUT = MessageLayout((TensorSpec((3,)),))


@pytest.mark.parametrize("announced", [LAYOUT.payload_nbytes + 1, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_header_that_announces_too_much_costs_no_memory(announced: int) -> None:
    header = pack_header(TAG, announced)
    tracemalloc.start()
    with pytest.raises(MessageError, match=f"announces {announced} bytes, {LAYOUT.payload_nbytes} were agreed"):
        check_header(header, TAG, LAYOUT.payload_nbytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**16


class Recorded(CpuGloo):
    """Buffers that record their sizes, and whose messages complete at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def buffer(self, nbytes: int) -> Tensor:
        self.asked.append(nbytes)
        return super().buffer(nbytes)

    def complete(self, work: object, timeout: float) -> None:
        """Do not wait."""


def test_a_channel_allocates_what_was_agreed_and_nothing_that_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    def forged(buffer: Tensor, *_: object, **__: object) -> object:
        header = pack_header(TAG, LARGEST)
        buffer[:HEADER_BYTES] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        return object()

    monkeypatch.setattr(dist, "irecv", forged)
    buffers, edge = Recorded(), Edge(Stream.ACTIVATION, 1)
    endpoint = P2PEndpoint(edge, 1, 0, lambda tag: LAYOUT, buffers, Watchdog(5.0), cast(dist.ProcessGroup, None))
    receiver = RemoteReceiver(endpoint, 1, iter([TAG]))
    with pytest.raises(ChannelError, match=f"announces {LARGEST} bytes, {LAYOUT.payload_nbytes} were agreed"):
        receiver.receive(TAG)
    assert set(buffers.asked) == {0, LAYOUT.nbytes}
