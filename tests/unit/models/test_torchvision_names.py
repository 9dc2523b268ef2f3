import pytest
import torch
from torchvision.models import resnet18, resnet34, resnet50

from counterflow.config import ResNet50Config, ResNetConfig
from counterflow.models import build
from counterflow.models.torchvision_names import to_torchvision


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (ResNetConfig(stem="imagenet"), resnet18),
        (ResNetConfig(stem="imagenet", stages=[3, 4, 6, 3]), resnet34),
        (ResNet50Config(stem="imagenet"), resnet50),
    ],
    ids=["resnet18", "resnet34", "resnet50"],
)
def test_every_name_and_shape_is_torchvisions(config, reference):
    with torch.device("meta"):
        ours, theirs = build(config, (3, 224, 224), 1000, seed=0).state_dict(), reference().state_dict()
    renamed = {to_torchvision(name, config.stages): value.shape for name, value in ours.items()}
    assert len(renamed) == len(ours)
    assert renamed == {name: value.shape for name, value in theirs.items()}
