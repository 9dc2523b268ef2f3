"""The idx file format of the MNIST family.

torchvision's reader knows no gzip, checks with ``assert``, and names neither the file nor the fault.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

_UINT8 = 0x0800


def read(path: Path, ndim: int) -> Tensor:
    """The uint8 tensor of ``ndim`` dimensions in ``path`` (gzip if so named).

    ``ValueError`` names the file and what is wrong with it.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    header = struct.Struct(f">{1 + ndim}I")
    if len(data) < header.size:
        raise ValueError(f"{path.name} has {len(data)} bytes: must be at least {header.size}, those of its header")
    magic, *shape = header.unpack_from(data)
    if magic != _UINT8 + ndim:
        raise ValueError(f"{path.name} has magic number {magic}: must be {_UINT8 + ndim}")
    if not all(shape):
        raise ValueError(f"{path.name} has shape {shape}: must not be empty")
    size = header.size + math.prod(shape)
    if len(data) != size:
        raise ValueError(f"{path.name} has {len(data)} bytes: must be {size} for shape {shape}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header.size).view(shape)
