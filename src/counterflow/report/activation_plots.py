"""Plots of the activations that blocks put out for test samples: distances between classes, and t-SNE."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from counterflow.report.groups import STATISTICS, ConfigGroup, labels
from counterflow.report.line_plots import errorbars, legend, subplots, whole_numbers
from counterflow.report.line_styles import line_styles
from counterflow.report.runs import Activations

_SAMPLES = 1000
"""Most samples that are embedded, evenly from all: time grows faster than it, and more points hide each other."""


class Distances(NamedTuple):
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
    """Distances between and within classes, from ``[M, d]`` and ``[M]`` with at least two classes."""
    names, index = np.unique(classes, return_inverse=True)
    centroids = np.stack([activations[index == c].mean(0) for c in range(len(names))])
    intra = np.linalg.norm(activations - centroids[index], axis=1).mean()
    pairs = [np.linalg.norm(centroids[c + 1 :] - centroids[c], axis=1) for c in range(len(names) - 1)]
    return Distances(float(np.concatenate(pairs).mean()), float(intra))


def class_distances(groups: Sequence[ConfigGroup]) -> Figure:
    """Three panels against the block: inter-class distance, intra-class distance, and their ratio."""
    figure, axes = subplots(3, 3, 3.6)
    titles = {"inter": "inter-class distance", "intra": "intra-class distance", "ratio": "inter / intra"}
    for group, name, style in zip(groups, labels(groups), line_styles(groups), strict=True):
        blocks = _distances_by_block(group)
        for axis, measure in zip(axes, titles, strict=True):
            errorbars(axis, blocks[measure], name, style)
    for axis, title in zip(axes, titles.values(), strict=True):
        axis.set(ylabel=title, ylim=(0, None))
        whole_numbers(axis, "block (0: inputs)")
    legend(figure, axes[0])
    return figure


def _distances_by_block(group: ConfigGroup) -> pd.DataFrame:
    """``STATISTICS`` of every measure by block, over the runs that kept their activations."""
    rows = [
        {"block": k, "inter": result.inter, "intra": result.intra, "ratio": result.ratio}
        for run in group.runs
        if run.activations is not None
        for k, block in _panels(run.activations)
        for result in [distances(block, run.activations.labels)]
    ]
    return pd.DataFrame(rows).groupby("block").agg(STATISTICS)


def embed(activations: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[M, d]`` to ``[M, 2]``; a function of its argument alone."""
    from sklearn.manifold import TSNE  # takes seconds, so reports without embeddings skip it

    method = TSNE(
        perplexity=min(30.0, (len(activations) - 1) / 3),
        init="pca" if activations.shape[1] > 1 else "random",
        random_state=0,
    )
    with threadpool_limits(1):  # sums over threads have no fixed order
        return np.asarray(method.fit_transform(activations), dtype=np.float64)


def shown_layers(count: int) -> Sequence[int]:
    """Panels to show of ``count``, from 0: evenly from the first to the last, at most five, which fit side by side."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, 5))})


def _panels(activations: Activations) -> Sequence[tuple[int, NDArray[np.float64]]]:
    """Numbers of the blocks and what they put out; 0 is what enters the network, if it is known."""
    inputs = [] if activations.inputs is None else [(0, activations.inputs)]
    return [*inputs, *enumerate(activations.blocks, 1)]


def first_activations(group: ConfigGroup) -> Activations | None:
    """Activations of the group's first seed that kept them."""
    return next((run.activations for run in group.runs if run.activations is not None), None)


def layer_embeddings(groups: Sequence[ConfigGroup]) -> Figure:
    """A row a group, a panel a layer, a point a sample, a colour a class."""
    known = [(group, result) for group in groups if (result := first_activations(group)) is not None]
    columns = max(len(shown_layers(len(_panels(result)))) for _, result in known)
    figure, axes = subplots(len(known) * columns, columns, 2.0)
    classes = np.unique(np.concatenate([result.labels for _, result in known]))
    few = len(classes) <= 10  # more colours could not be told apart: they have no legend
    colours = (
        colormaps["tab10"](np.arange(len(classes)))
        if few
        else colormaps["gist_rainbow"](np.linspace(0, 1, len(classes)))
    )
    for i, ((_, result), name) in enumerate(zip(known, labels([group for group, _ in known]), strict=True)):
        row = axes[i * columns : (i + 1) * columns]
        panels = [_panels(result)[i] for i in shown_layers(len(_panels(result)))]
        step = -(-len(result.labels) // _SAMPLES)
        index = np.searchsorted(classes, result.labels[::step])
        for axis, (k, values) in zip(row, panels, strict=False):
            points = embed(values[::step])
            axis.scatter(points[:, 0], points[:, 1], s=3, c=colours[index], linewidths=0, rasterized=True)
            axis.set(title=f"block {k}" if k else "inputs", xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color="#cccccc")
        row[0].set_ylabel(name)
        for axis in row[len(panels) :]:
            axis.remove()
    if few:
        dots = [axes[0].scatter([], [], s=16, color=[tint]) for tint in colours]
        names = [f"class {classes[0]}", *map(str, classes[1:])]
        figure.legend(dots, names, loc="outside upper left", ncols=len(classes), handletextpad=0)
    return figure
