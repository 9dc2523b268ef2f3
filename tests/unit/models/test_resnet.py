import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck

from counterflow.config import ResNet50Config, ResNetConfig
from counterflow.models.resnet import resnet


def test_layers_are_stem_eight_blocks_output() -> None:
    network = resnet(ResNetConfig(), (1, 28, 28), 10)
    assert [type(layer) for layer in network] == [nn.Sequential, *[BasicBlock] * 8, nn.Sequential]
    activation = torch.randn(2, 1, 28, 28)
    shapes = [tuple((activation := layer(activation)).shape[1:]) for layer in network]
    assert shapes == [
        *[(64, 28, 28)] * 3,
        *[(128, 14, 14)] * 2,
        *[(256, 7, 7)] * 2,
        *[(512, 4, 4)] * 2,
        (10,),
    ]


def test_resnet50_has_16_bottleneck_blocks_of_torchvisions_size() -> None:
    with torch.device("meta"):
        network = resnet(ResNet50Config(), (3, 32, 32), 10)
        reference = resnet50(num_classes=10)
    assert [type(layer) for layer in network] == [nn.Sequential, *[Bottleneck] * 16, nn.Sequential]
    sizes = [sum(p.numel() for p in n.parameters()) for n in (network, reference)]
    assert sizes[0] == sizes[1] - 64 * 3 * (7 * 7 - 3 * 3)  # the stem


@pytest.mark.parametrize("training", [True, False])
def test_equals_torchvision_with_the_same_weights(training: bool) -> None:
    network = resnet(ResNetConfig(), (3, 32, 32), 10).train(training)
    reference = resnet18(num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    # Modules are registered in the order of the forward pass in both.
    entries = zip(reference.state_dict(), network.state_dict().values(), strict=True)
    reference.load_state_dict({name: value.clone() for name, value in entries})
    reference.train(training)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x), reference(x))
    if training:
        updated = zip(network.buffers(), reference.buffers(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in updated)


def test_stem_is_initialised_like_torchvisions_convolutions() -> None:
    torch.manual_seed(0)
    weight = resnet(ResNetConfig(), (16, 8, 8), 10)[0][0].weight
    assert weight.shape == (64, 16, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # kaiming, fan out, normal
    assert weight.abs().max() > 3 * weight.std()


def test_a_narrow_short_network_with_a_strided_stem() -> None:
    network = resnet(ResNetConfig(stages=[1, 3], width=4, stride=2), (1, 28, 28), 10)
    activation = torch.randn(2, 1, 28, 28)
    shapes = [tuple((activation := layer(activation)).shape[1:]) for layer in network]
    assert shapes == [*[(4, 14, 14)] * 2, *[(8, 7, 7)] * 3, (10,)]
