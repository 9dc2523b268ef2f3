"""Residual networks of torchvision, with the stem for small images."""

from itertools import chain

from torch import nn

from counterflow.config import ResNetConfig


def resnet(config: ResNetConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """torchvision's network named ``config.name`` as layers: stem, every residual block, output ``[B, classes]``.

    As in He et al. (2016), section 4.2, small images enter through a 3x3 convolution of stride 1 without pooling.
    torchvision's ReLUs work in place, but only on results of the same layer, never on its input.
    """
    from torchvision.models import get_model  # seconds of import, for every process that needs no ResNet

    network = get_model(config.name, weights=None, num_classes=classes)
    convolution = nn.Conv2d(input_shape[0], network.conv1.out_channels, 3, padding=1, bias=False)
    # torchvision's own initialisation of convolutions, which the new one missed.
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(
        nn.Sequential(convolution, network.bn1, network.relu),
        *chain(network.layer1, network.layer2, network.layer3, network.layer4),
        nn.Sequential(network.avgpool, nn.Flatten(), network.fc),
    )
