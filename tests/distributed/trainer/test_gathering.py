"""Weights on rank 0, in pieces: every bit of every type, whatever the sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from counterflow.inference.model_files import read_tensors, write_tensors
from counterflow.trainer.gathering import gather_tensors
from counterflow.transport import connect
from tests.helpers.processes import Pool


def block(number: int) -> nn.Module:
    generator = torch.Generator().manual_seed(number)
    module = nn.Module()
    module.register_parameter(f"weight{number}", nn.Parameter(torch.randn(5, number, generator=generator)))
    module.register_buffer(f"count{number}", torch.tensor(number))
    module.register_buffer(f"half{number}", torch.randn(3, generator=generator).bfloat16())
    module.register_buffer(f"mask{number}", torch.tensor([[True, False, True]]))
    module.register_buffer(f"empty{number}", torch.empty(0, 4))
    return module


def gathered(rank: int, size: int, store: str, folder: str | None, piece: int) -> dict[str, Tensor]:
    comm = connect(torch.distributed.FileStore(store, size) if size > 1 else None, rank, size, timeout=30)
    blocks = {1: range(1, 6), 2: range(1 + 3 * rank, 4 + 2 * rank)}[size]
    scratch = None if folder is None else Path(folder) / "weights.part"
    found = gather_tensors({number: block(number) for number in blocks}, comm, "the weights", scratch, piece)
    comm.close()
    return {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize("piece", [7, 64, 1 << 20])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_bit_arrives(pool: Pool, tmp_path: Path, ranks: int, mapped: bool, piece: int) -> None:
    first, *others = pool.run(ranks, gathered, str(tmp_path) if mapped else None, piece)
    expected = {name: value for number in range(1, 6) for name, value in block(number).state_dict().items()}
    assert list(first) == list(expected), "bottom to top"
    for name, value in expected.items():
        assert (first[name].dtype, first[name].shape) == (value.dtype, value.shape)
        assert torch.equal(first[name], value)
    assert all(other == {} for other in others)
    assert list(tmp_path.iterdir()) == [], "the scratch file is gone"


def test_the_file_is_what_safetensors_writes(tmp_path: Path) -> None:
    """Read by the library; tensors that are not contiguous, and types of several widths."""
    tensors = dict(block(3).state_dict()) | {
        "turned": torch.randn(3, 4).T,
        "long": torch.arange(3),
        "one": torch.ones(()),
    }
    with (tmp_path / "a").open("wb") as file:
        write_tensors(tensors, file)
    found = read_tensors(tmp_path / "a")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
