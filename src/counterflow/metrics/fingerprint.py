"""Fingerprint of trained weights: equal fingerprints mean equal bits."""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn


def digest(module: nn.Module) -> bytes:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers of ``module``."""
    sha = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.digest()


def fingerprint(digests: Iterable[bytes]) -> str:
    """SHA-256 over the digests of all blocks, bottom to top; independent of the ranks that own the blocks."""
    return hashlib.sha256(b"".join(digests)).hexdigest()
