"""How far the classes lie apart in the outputs of a block, and how close the samples of a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from counterflow.report.estimate import Estimate
from counterflow.report.group import Group, labels
from counterflow.report.style import canvas, legend, looks


@dataclass(frozen=True)
class Distances:
    """Euclidean, in the unit of the activations."""

    inter: float
    """Mean over all pairs of classes, between their centroids."""
    intra: float
    """Mean over all samples, to the centroid of their class."""

    @property
    def ratio(self) -> float:
        """``inter / intra``: the larger, the better the classes are told apart; infinite where samples coincide."""
        return self.inter / self.intra if self.intra else float("inf")


def distances(activations: NDArray[np.float64], classes: NDArray[np.int64]) -> Distances:
    """Of ``[M, d]`` and ``[M]`` with at least two classes."""
    names, index = np.unique(classes, return_inverse=True)
    centroids = np.stack([activations[index == c].mean(0) for c in range(len(names))])
    intra = np.linalg.norm(activations - centroids[index], axis=1).mean()
    pairs = [np.linalg.norm(centroids[c + 1 :] - centroids[c], axis=1) for c in range(len(names) - 1)]
    return Distances(float(np.concatenate(pairs).mean()), float(intra))


def of_group(group: Group) -> Sequence[Sequence[Distances]]:
    """Of every block, bottom to top, those of every run that kept its activations."""
    runs = [
        [distances(block, run.activations.labels) for block in run.activations.blocks]
        for run in group.runs
        if run.activations is not None
    ]
    return list(zip(*runs, strict=True))


def class_distances(groups: Sequence[Group]) -> Figure:
    """Three panels against the layer: inter-class distance, intra-class distance, and their ratio."""
    known = [group for group in groups if any(run.activations is not None for run in group.runs)]
    figure, axes = canvas(1, 3, 3.6)
    for group, name, look in zip(known, labels(known), looks(known), strict=True):
        blocks = of_group(group)
        layers = list(range(1, len(blocks) + 1))
        for axis, figures in zip(
            axes,
            (
                [[d.inter for d in block] for block in blocks],
                [[d.intra for d in block] for block in blocks],
                [[d.ratio for d in block] for block in blocks],
            ),
            strict=True,
        ):
            estimates = [e for e in map(Estimate.of, figures) if e is not None]
            means, errors = [e.mean for e in estimates], [e.error for e in estimates]
            axis.errorbar(layers, means, errors, label=name, capsize=3, **look)
    for axis, title in zip(axes, ("inter-class distance", "intra-class distance", "inter / intra"), strict=True):
        axis.set_ylabel(title)
        axis.set_xlabel("block (1 is next to the inputs)")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, axes[0])
    return figure
