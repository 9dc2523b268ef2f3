import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck

from counterflow.config import ResNet20Config, ResNet32Config, ResNet50Config, ResNetConfig
from counterflow.models import build
from counterflow.models.networks import Shortcut


def test_layers_are_stem_eight_blocks_output() -> None:
    network = build(ResNetConfig(), (1, 28, 28), 10, seed=0)
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
        network = build(ResNet50Config(), (3, 32, 32), 10, seed=0)
        reference = resnet50(num_classes=10)
    assert [type(layer) for layer in network] == [nn.Sequential, *[Bottleneck] * 16, nn.Sequential]
    sizes = [sum(p.numel() for p in n.parameters()) for n in (network, reference)]
    assert sizes[0] == sizes[1] - 64 * 3 * (7 * 7 - 3 * 3)  # the stem


@pytest.mark.parametrize("training", [True, False])
def test_equals_torchvision_with_the_same_weights(training: bool) -> None:
    network = build(ResNetConfig(), (3, 32, 32), 10, seed=0).train(training)
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
    weight = build(ResNetConfig(), (16, 8, 8), 10, seed=0)[0][0].weight
    assert weight.shape == (64, 16, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # kaiming, fan out, normal
    assert weight.abs().max() > 3 * weight.std()


def test_a_narrow_short_network_with_a_strided_stem() -> None:
    network = build(ResNetConfig(stages=[1, 3], width=4, stride=2), (1, 28, 28), 10, seed=0)
    activation = torch.randn(2, 1, 28, 28)
    shapes = [tuple((activation := layer(activation)).shape[1:]) for layer in network]
    assert shapes == [*[(4, 14, 14)] * 2, *[(8, 7, 7)] * 3, (10,)]


@pytest.mark.parametrize(
    ("config", "blocks", "parameters"), [(ResNet20Config(), 3, 0.27e6), (ResNet32Config(), 5, 0.46e6)]
)
def test_published_size_of_resnet20_and_32(config: ResNetConfig, blocks: int, parameters: float) -> None:
    """Table 6 of He et al. (2016); the depth counts the weighted layers."""
    network = build(config, (3, 32, 32), 10, seed=0)
    assert len(network) == 2 + 3 * blocks
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, abs=0.005e6)
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == int(config.name.removeprefix("resnet"))


@pytest.mark.parametrize(
    ("size", "sizes"), [((32, 32), [(32, 32), (16, 16), (8, 8)]), ((9, 5), [(9, 5), (5, 3), (3, 2)])]
)
def test_resnet20_has_three_stages_each_of_half_the_pixels(size: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    network = build(ResNet20Config(), (1, *size), 10, seed=0)
    activation = torch.randn(2, 1, *size)
    shapes = [tuple((activation := layer(activation)).shape[1:]) for layer in network]
    low, middle, high = ((channels, *s) for channels, s in zip((16, 32, 64), sizes, strict=True))
    assert shapes == [*[low] * 4, *[middle] * 3, *[high] * 3, (10,)]


def test_shortcut_is_every_second_pixel_and_then_zeros() -> None:
    x = torch.arange(30.0).view(1, 2, 3, 5)
    y = Shortcut(5)(x)
    assert y.shape == (1, 5, 2, 3)
    assert y[0, 1].tolist() == [[15, 17, 19], [25, 27, 29]]
    assert not y[0, 2:].any()
    assert not list(Shortcut(5).parameters())


def test_a_block_that_halves_by_hand() -> None:
    block = build(ResNet20Config(), (3, 8, 8), 10, seed=0).eval()[4]
    x = torch.randn(2, 16, 8, 8)
    hidden = block.bn1(nn.functional.conv2d(x, block.conv1.weight, stride=2, padding=1)).clamp(min=0)
    residual = block.bn2(nn.functional.conv2d(hidden, block.conv2.weight, padding=1))
    shortcut = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)], dim=1)
    torch.testing.assert_close(block(x), (residual + shortcut).clamp(min=0))


def test_convolutions_of_resnet20_are_initialised_for_relu() -> None:
    """He et al. (2015), fan out."""
    for module in build(ResNet20Config(), (3, 8, 8), 10, seed=0).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            assert module.weight.std().item() == pytest.approx((2 / (module.out_channels * 9)) ** 0.5, rel=0.1)
