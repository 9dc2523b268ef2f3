"""Files of a trained network in a run directory: ``model.safetensors``, ``readouts.safetensors``, ``model.json``, and
``tokenizer.json`` of a language model of subwords.

Weights are in safetensors and the architecture is names and numbers: nothing is pickled, and reading runs no code.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.checksum import sha256

DESCRIPTION = "model.json"
NETWORK = "model.safetensors"
"""Parameters and buffers of the network, under their own names."""
READOUTS = "readouts.safetensors"
"""Tensors that only a rule brings to predictions: ``block.K.readout.NAME`` and ``block.K.decoder.NAME``."""
BEST = "best.safetensors"
"""Parameters and buffers of the network as they were in the best evaluation (``checkpoint.best=true``)."""
TOKENIZER = "tokenizer.json"
"""Copy of the tokenizer's file, of a language model whose tokens are not bytes."""
FORMAT = 1
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in safetensors."""
_MAX_BYTES = 16 << 20
"""Longer descriptions are no ones, and not read."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Architecture of a trained network, and what its inputs and outputs mean."""

    model: Mapping[str, Any]
    """Options of the network, or the import path of its factory (``target``) and arguments (``args``)."""
    algorithm: Mapping[str, Any]
    """Options of the learning rule."""
    cut: Sequence[int]
    """Layers of every block, bottom to top."""
    input_shape: Sequence[int]
    """Shape of one sample."""
    input_type: str
    """Type of the inputs in the data set: ``uint8`` images, ``int64`` tokens, ``float32`` numbers."""
    mean: Sequence[float] | None
    """Mean of each channel of images in training, in units of the uint8 values."""
    std: Sequence[float] | None
    """Deviation of each channel of images in training."""
    label_shape: Sequence[int]
    class_names: Sequence[str]
    parameters: Sequence[str]
    """Names in `NETWORK`, in the order of the network."""
    unused: Sequence[str]
    """Names of the network that predictions do not need, and which are left out."""
    exits: Sequence[int]
    """Blocks that have a prediction of their own."""
    predicts_down: bool
    """Predictions go up, across the readout, and down through the decoders of all blocks below it."""
    fingerprint: str
    """Fingerprint of the run."""
    tokens_per_byte: float | None = None
    """Tokens that stand for a byte of the test text; None where the inputs are no text."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Checksums of the other files; `TOKENIZER` is among them where there is one."""
    format: int = FORMAT


@dataclass(frozen=True)
class ModelFiles:
    """A description with its weights, on the CPU."""

    description: ModelDescription
    network: Mapping[str, Tensor]
    readouts: Mapping[str, Tensor]
    tokenizer: bytes | None = None
    """Content of the tokenizer's file; None where tokens are bytes, and where the inputs are no text."""

    def write(self, folder: Path) -> None:
        """Write the files into ``folder``, the description last. Raises ``OSError``."""
        contents: dict[str, bytes | Callable[[BinaryIO], object]] = {
            NETWORK: partial(write_tensors, self.network),
            READOUTS: partial(write_tensors, self.readouts),
        }
        if self.tokenizer is not None:
            contents[TOKENIZER] = self.tokenizer
        for name, content in contents.items():
            atomic_write(folder / name, content)
        sums = {name: sha256(folder / name) for name in contents}
        text = json.dumps({**asdict(self.description), "sha256": sums}, indent=2)
        atomic_write(folder / DESCRIPTION, text.encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the files in ``folder``. ``ValueError`` of one line where one is missing, or not as it was written."""
        description = _read_description(folder)
        network, readouts = (
            read_tensors(folder / name, description.sha256.get(name, "")) for name in (NETWORK, READOUTS)
        )
        if set(network) != set(description.parameters):
            raise ValueError(f"{folder / NETWORK}: does not hold the parameters that {DESCRIPTION} lists")
        tokenizer = description.sha256.get(TOKENIZER)
        return cls(description, network, readouts, None if tokenizer is None else _read(folder / TOKENIZER, tokenizer))


def write_tensors(tensors: Mapping[str, Tensor], file: BinaryIO) -> None:
    """Write a safetensors file, tensor by tensor: the package's own function holds the bytes of all."""
    header: dict[str, Any] = {}
    end = 0
    # The widest numbers first, so that each is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _read_description(folder: Path) -> ModelDescription:
    path = folder / DESCRIPTION
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
    except FileNotFoundError:
        kind = "is a run that has not finished" if (folder / "config.yaml").exists() else "holds no finished run"
        raise ValueError(f"run={folder}: {kind}: it has no {DESCRIPTION}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged, or no description of a network") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path}: is damaged, or no description of a network")
    if content["format"] != FORMAT:
        raise ValueError(f"{path}: is of format {content['format']}, this version of counterflow reads {FORMAT}")
    try:
        return ModelDescription(**content)
    except TypeError as error:
        raise ValueError(f"{path}: is damaged, or no description of a network") from error


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file. ``ValueError`` of one line where it is damaged, or not the one of ``sha256``."""
    content = _read(path, sha256)
    try:
        return load(content)
    except (SafetensorError, ValueError, torch.OutOfMemoryError) as error:
        raise ValueError(f"{path}: is no safetensors file: {str(error).splitlines()[0]}") from error


def _read(path: Path, sha256: str | None) -> bytes:
    """Content of a file. ``ValueError`` of one line where it is missing, or not the one of ``sha256``."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path}: is not the file that the run wrote (damaged, or of another run)")
    return content
