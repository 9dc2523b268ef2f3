"""Networks by layers: MLP, CNN, VGG, residual networks and a transformer encoder."""

from collections.abc import Iterator
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.config import CNNConfig, MLPConfig, ResNetConfig, TransformerConfig, VGGConfig


def _layer(weights: nn.Module, norm: nn.Module | None, dropout: nn.Dropout | nn.Dropout2d) -> nn.Sequential:
    """Layer of ``weights``, a norm if there is one, ReLU, and dropout if it is above 0."""
    modules = [weights, norm, nn.ReLU(), dropout if dropout.p > 0 else None]
    return nn.Sequential(*(module for module in modules if module is not None))


def mlp(config: MLPConfig, input_shape: tuple[int, ...], classes: int) -> Iterator[nn.Module]:
    """``config.hidden`` layers ``[B, width]`` and an output layer ``[B, classes]``; the first flattens its input."""
    features = [prod(input_shape)] + [config.width] * config.hidden
    for number, (inputs, outputs) in enumerate(pairwise(features)):
        layer = hidden_layer(inputs, outputs, config.norm, config.dropout)
        yield layer.insert(0, nn.Flatten()) if number == 0 else layer
    yield nn.Linear(features[-1], classes)


def hidden_layer(inputs: int, outputs: int, norm: str, dropout: float) -> nn.Sequential:
    """Linear layer, a norm (``none``, ``layer`` or ``batch``), ReLU, and dropout if it is above 0."""
    kinds: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}
    # Batch norm would cancel a bias; layer norm does not, its mean is over the features.
    weights = nn.Linear(inputs, outputs, bias=norm != "batch")
    return _layer(weights, kinds[norm](outputs) if norm in kinds else None, nn.Dropout(dropout))


def cnn(config: CNNConfig, input_shape: tuple[int, ...], classes: int) -> Iterator[nn.Module]:
    """One layer per convolution, ``[B, channels, height, width]``, and an output layer ``[B, classes]``.

    A stride ``s`` turns ``h`` pixels into ``ceil(h / s)``, at least one, so any image is large enough.
    """
    channels = [input_shape[0], *config.channels]
    for (inputs, outputs), stride in zip(pairwise(channels), config.strides, strict=True):
        yield convolution(inputs, outputs, stride, config.norm, config.dropout)
    yield nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


def convolution(inputs: int, outputs: int, stride: int, norm: str, dropout: float) -> nn.Sequential:
    """Layer of a 3x3 convolution, a norm (``none`` or ``batch``), ReLU, and dropout if it is above 0.

    Maps ``[B, inputs, H, W]`` become ``[B, outputs, ceil(H / stride), ceil(W / stride)]``.
    """
    # Batch norm would cancel a bias.
    weights = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm == "none")
    # Entire channels are dropped: neighbouring pixels are alike, so dropping single pixels hides little.
    return _layer(weights, nn.BatchNorm2d(outputs) if norm == "batch" else None, nn.Dropout2d(dropout))


def vgg(config: VGGConfig, input_shape: tuple[int, ...], classes: int) -> Iterator[nn.Module]:
    """VGG-like network by layers.

    There is one layer per convolution and its pooling, ``[B, channels, height, width]``, one per hidden layer, ``[B,
    width]``, and an output layer, ``[B, classes]``. The default is vgg8b of Nokland and Eidnes (arXiv 1901.06656)
    without the biases, which batch norm cancels. Pooling stops at one pixel, so any image is large enough.
    """
    channels, height, width = input_shape
    for outputs, pool in zip(config.channels, config.pools, strict=True):
        outputs = max(1, int(outputs * config.width))
        window = min(pool, height), min(pool, width)
        layer = convolution(channels, outputs, 1, "batch", config.dropout)
        yield layer.append(nn.MaxPool2d(window)) if window != (1, 1) else layer
        channels, height, width = outputs, height // window[0], width // window[1]
    features = [channels * height * width, *config.hidden]
    for number, (inputs, outputs) in enumerate(pairwise(features)):
        layer = hidden_layer(inputs, outputs, "batch", config.dropout)
        yield layer.insert(0, nn.Flatten()) if number == 0 else layer
    output = nn.Linear(features[-1], classes)
    yield nn.Sequential(output) if config.hidden else nn.Sequential(nn.Flatten(), output)


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


def resnet(config: ResNetConfig, input_shape: tuple[int, ...], classes: int) -> Iterator[nn.Module]:
    """Residual network of He et al. (2016) as layers: stem, every residual block, output ``[B, classes]``.

    As in their section 4.2, small images enter through a 3x3 convolution without pooling; the stem of ``imagenet`` is
    that of their table 1, a 7x7 convolution and max pooling. Every stage after the first
    halves the pixels and doubles the channels. ``resnet50`` has bottleneck blocks; ``resnet20`` and ``resnet32`` have
    shortcuts without parameters. torchvision's ReLUs work in place, but only on results of the same layer, never on
    its input.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck  # takes seconds, so other networks skip it

    kind = Bottleneck if config.name == "resnet50" else BasicBlock
    parameterless = config.name in ("resnet20", "resnet32")
    channels = config.width
    imagenet = config.stem == "imagenet"
    side, stride = (7, 2) if imagenet else (3, config.stride)
    stem = nn.Conv2d(input_shape[0], channels, side, stride, padding=side // 2, bias=False)
    entry = nn.Sequential(stem, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    if imagenet:
        entry.append(nn.MaxPool2d(3, 2, padding=1))
    yield _initialized(entry)
    for stage, blocks in enumerate(config.stages):
        planes = config.width * 2**stage
        outputs = planes * kind.expansion
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            shortcut: nn.Module | None = None
            if stride > 1 or channels != outputs:
                shortcut = Shortcut(outputs) if parameterless else _projection(channels, outputs, stride)
            yield _initialized(kind(channels, planes, stride, shortcut))
            channels = outputs
    yield nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _initialized(layer: nn.Module) -> nn.Module:
    """``layer`` with torchvision's initialisation of convolutions, which is He et al.'s (2015)."""
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return layer


class Embedding(nn.Module):
    """Learned embeddings of tokens plus positions: int64 ``[B, length]`` to ``[B, length, width]``."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(tokens)
        return embedded + self.positions


def transformer(config: TransformerConfig, input_shape: tuple[int, ...], classes: int) -> Iterator[nn.Module]:
    """Embedding, ``config.layers`` encoder layers ``[B, T, width]``, and an output layer ``[B, T, classes]``.

    ``input_shape`` is ``(T,)``. The vocabulary of the input is that of the output, ``classes`` tokens. Every position
    attends to all others.
    """
    (length,) = input_shape
    yield Embedding(classes, length, config.width)
    for _ in range(config.layers):
        yield nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.hidden,
            config.dropout,
            # A function, not the name "relu": with the name, torch evaluates by a fused operation on the parameters of
            # the inner layers, which bypasses the modules that replace these layers in feedback alignment.
            activation=torch.relu,
            batch_first=True,
            norm_first=True,
        )
    yield nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, classes))
