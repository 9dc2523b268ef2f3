"""Test accuracies that papers report, each with its source. A number is here only if somebody read it there."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    percent: float
    source: str


_BLL = "Kappel et al., arXiv 2305.14974; the poster's Table 1, as given by the project owner"

PUBLISHED: Mapping[tuple[str, str, str], Published] = {
    ("bll", "resnet18", "fashion_mnist"): Published(94.2, _BLL),
    ("bll", "resnet50", "fashion_mnist"): Published(94.3, _BLL),
    ("bll", "resnet50", "cifar10"): Published(92.6, _BLL),
}
"""By algorithm, model and data."""
