"""Residual networks with the stem for small images, from the blocks of torchvision."""

import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.config import ResNetConfig


class Shortcut(nn.Module):
    """Shortcut without parameters, option A of He et al. (2016): ``[B, C, H, W]`` to ``[B, channels, H/2, W/2]``.

    It takes every second pixel and appends channels of zeros. Odd sides are rounded up, as by a convolution of stride
    2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels - x.shape[1]))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut with parameters, option B of He et al. (2016)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def resnet(config: ResNetConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Residual network of He et al. (2016) as layers: stem, every residual block, output ``[B, classes]``.

    As in their section 4.2, small images enter through a 3x3 convolution without pooling. Every stage after the first
    halves the pixels and doubles the channels. ``resnet50`` has bottleneck blocks; ``resnet20`` and ``resnet32`` have
    shortcuts without parameters. torchvision's ReLUs work in place, but only on results of the same layer, never on
    its input.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck  # takes seconds, so other networks skip it

    kind = Bottleneck if config.name == "resnet50" else BasicBlock
    parameterless = config.name in ("resnet20", "resnet32")
    channels = config.width
    stem = nn.Conv2d(input_shape[0], channels, 3, config.stride, padding=1, bias=False)
    network = nn.Sequential(nn.Sequential(stem, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
    for stage, blocks in enumerate(config.stages):
        planes = config.width * 2**stage
        outputs = planes * kind.expansion
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            shortcut: nn.Module | None = None
            if stride > 1 or channels != outputs:
                shortcut = Shortcut(outputs) if parameterless else _projection(channels, outputs, stride)
            network.append(kind(channels, planes, stride, shortcut))
            channels = outputs
    network.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # torchvision's initialisation, and He et al.'s (2015)
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
