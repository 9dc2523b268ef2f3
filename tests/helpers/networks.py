"""A user's own network, for ``model=custom``: three layers of odd shapes."""

from torch import nn


def odd(classes: int = 11) -> nn.Sequential:
    """For images of 3 x 7 x 5: maps of 6 x 4 x 3, then a vector of 13, then the output."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(72, 13), nn.Tanh()),
        nn.Linear(13, classes),
    )
