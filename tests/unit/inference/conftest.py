from pathlib import Path

import pytest
import torch
from torch import nn

from counterflow.inference.predictor import Normalisation, Predictor


@pytest.fixture
def images() -> Predictor:
    """Network for grey images of 4 x 3 pixels, whose class is the brighter half: ``left`` or ``right``."""
    linear = nn.Linear(12, 2, bias=False)
    with torch.no_grad():
        columns = torch.tensor([1.0, 0.0, -1.0]).repeat(4)
        linear.weight.copy_(torch.stack((columns, -columns)))
    network = nn.Sequential(nn.Flatten(), linear)
    return Predictor(
        network, nn.Identity(), Normalisation([100.0], [50.0]), ["left", "right"], (1, 4, 3), torch.uint8
    ).eval()


@pytest.fixture
def tokens() -> Predictor:
    """Network that repeats its tokens, of two kinds."""
    network = nn.Sequential(nn.Embedding.from_pretrained(torch.eye(2)))
    return Predictor(network, nn.Identity(), nn.Identity(), ["no", "yes"], (3,), torch.int64).eval()


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"
