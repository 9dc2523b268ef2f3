"""Residual networks for small images, from the blocks of torchvision."""

import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.config import ResNetConfig

_BLOCKS = {"resnet20": 3, "resnet32": 5}
"""Residual blocks of each of the three stages."""


class Shortcut(nn.Module):
    """Every second pixel, and channels of zeros up to ``channels``: ``[B, C, H, W]`` to ``[B, channels, H/2, W/2]``.

    Option A of He et al. (2016): no parameters. Odd sides are rounded up, as by a convolution of stride 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels - x.shape[1]))


def cifar_resnet(config: ResNetConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """He et al. (2016), section 4.2, as layers: stem, every residual block, output ``[B, classes]``.

    Three stages of 16, 32 and 64 channels; the second and third halve the pixels.
    """
    from torchvision.models.resnet import BasicBlock  # seconds of import, for every process that needs no ResNet

    channels = 16
    stem = nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)
    network = nn.Sequential(nn.Sequential(stem, nn.BatchNorm2d(channels), nn.ReLU()))
    for outputs in (16, 32, 64):
        for _ in range(_BLOCKS[config.name]):
            halve = outputs > channels
            network.append(BasicBlock(channels, outputs, *((2, Shortcut(outputs)) if halve else ())))
            channels = outputs
    network.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
