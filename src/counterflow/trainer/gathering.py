"""Weights of all blocks on rank 0, gathered in pieces."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from counterflow.transport import Communicator

_PIECE = 4 << 20
"""Bytes that are gathered at a time: every process holds as many for each rank."""
_ALIGNMENT = 64


class _Spec(NamedTuple):
    rank: int
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class _Piece(NamedTuple):
    """Bytes ``start .. end - 1`` of a tensor."""

    spec: _Spec
    start: int
    end: int


def gather_tensors(
    modules: Mapping[int, nn.Module],
    comm: Communicator,
    what: str,
    scratch: Path | None = None,
    most: int = _PIECE,
) -> dict[str, Tensor]:
    """Parameters and buffers of the modules of all blocks, bottom to top, on the CPU of rank 0; none elsewhere.

    All ranks must call it.

    Args:
        modules: Those of this rank's blocks.
        comm: The processes of the run.
        what: Name of these weights for errors, unique in the run.
        scratch: A file that takes the place of memory, on rank 0; it is removed once it is mapped.
        most: Bytes that are gathered at a time.

    Raises:
        ChannelError: A rank is lost.
        OSError: The file cannot be written.
    """
    own = {block: module.state_dict() for block, module in modules.items()}
    described = {
        block: [_Spec(comm.rank, name, tuple(value.shape), value.dtype) for name, value in state.items()]
        for block, state in own.items()
    }
    blocks = {
        block: specs for part in comm.all_gather(described, f"the names of {what}") for block, specs in part.items()
    }
    specs = [spec for block in sorted(blocks) for spec in blocks[block]]
    mine = {name: value for state in own.values() for name, value in state.items()}
    whole = _allocate(specs, scratch) if comm.rank == 0 else {}
    for number, pieces in enumerate(_messages(specs, most)):
        # As arrays: of a tensor that is a part, pickle would take the whole.
        content = [
            _bytes(mine[name])[start:end].cpu().numpy() for (rank, name, *_), start, end in pieces if rank == comm.rank
        ]
        for rank, parts in enumerate(comm.gather(content, f"part {number} of {what}") or []):
            places = [piece for piece in pieces if piece.spec.rank == rank]
            for (spec, start, end), values in zip(places, parts, strict=True):
                _bytes(whole[spec.name])[start:end] = torch.from_numpy(values)
    return whole


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes of ``tensor``, uint8 ``[nbytes]``; a view of a contiguous one."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _messages(specs: list[_Spec], most: int) -> Iterator[list[_Piece]]:
    """Pieces of up to ``most`` bytes together, in the order of ``specs``."""
    message: list[_Piece] = []
    room = most
    for spec in specs:
        start = 0
        while start < spec.nbytes:
            end = min(spec.nbytes, start + room)
            message.append(_Piece(spec, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield message
                message, room = [], most
    if message:
        yield message


def _allocate(specs: list[_Spec], scratch: Path | None) -> dict[str, Tensor]:
    """Tensors without values, in memory or in the mapped file ``scratch``."""
    if scratch is None:
        return {spec.name: torch.empty(spec.shape, dtype=spec.dtype) for spec in specs}
    starts = [0, *accumulate(-(-spec.nbytes // _ALIGNMENT) * _ALIGNMENT for spec in specs)]
    # Not torch.from_file: what it maps cannot be sent to another process once the file is gone.
    content = torch.from_numpy(np.memmap(scratch, np.uint8, "w+", shape=max(1, starts[-1])))
    scratch.unlink()
    return {
        spec.name: content[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)
        for spec, start in zip(specs, starts, strict=False)
    }
