"""Factories of networks for ``model.target``, good and bad ones."""

from torch import nn

NUMBER = 3


def images(width: int = 8) -> nn.Sequential:
    """Network for images ``[B, 2, 3, 5]``."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(width, width, (1, 3)), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Flatten(), nn.Linear(width * 9, 10)),
    )


def sequences() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(10, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 10))


def in_place() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)), nn.Linear(4, 2)))


def a_list() -> list[nn.Module]:
    return [nn.Linear(2, 2)]


def odd(classes: int = 11) -> nn.Sequential:
    """Network of odd shapes, for images ``[B, 3, 7, 5]``: maps ``[B, 6, 4, 3]``, vectors ``[B, 13]``, output."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(72, 13), nn.Tanh()),
        nn.Linear(13, classes),
    )


def named() -> nn.Sequential:
    """Network of layers with names, for vectors ``[B, 6]``: a batch norm, one without parameters, output ``[B, 4]``."""
    network = nn.Sequential()
    network.add_module("stem", nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9)))
    network.add_module("bend", nn.ReLU())
    network.add_module("middle", nn.Sequential(nn.Linear(9, 8), nn.Tanh()))
    network.add_module("head", nn.Linear(8, 4))
    return network
