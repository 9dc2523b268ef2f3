"""Test accuracies from papers, each with its source. Only numbers that were read in that source are here."""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    percent: float
    source: str


_BLL = "Kappel et al., arXiv 2305.14974; the poster's Table 1, as given by the project owner"

PUBLISHED: Mapping[tuple[str, str, str], Published] = {
    ("bll", "resnet18", "fashion_mnist"): Published(94.2, _BLL),
    ("bll", "resnet50", "fashion_mnist"): Published(94.3, _BLL),
    ("bll", "resnet50", "cifar10"): Published(92.6, _BLL),
}
"""By algorithm, model and data."""
