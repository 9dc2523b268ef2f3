"""t-SNE of what the blocks put out."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from counterflow.report.activations import Activations
from counterflow.report.group import Group, labels
from counterflow.report.style import canvas

_SAMPLES = 1000
"""As many are embedded, the first ones: the time grows faster than their number, and more points hide each other."""
_PANELS = 5
_SEED = 0
_LEGEND = 10
"""More classes have no legend: their colours could not be told apart."""


def embed(activations: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[M, d]`` to ``[M, 2]``; a function of its argument alone."""
    perplexity = min(30.0, (len(activations) - 1) / 3)
    method = TSNE(perplexity=perplexity, init="pca" if activations.shape[1] > 1 else "random", random_state=_SEED)
    with threadpool_limits(1):  # sums over threads have no fixed order
        return np.asarray(method.fit_transform(activations), dtype=np.float64)


def shown_layers(blocks: int) -> Sequence[int]:
    """Evenly from the lowest to the top, at most as many as fit beside each other; from 1."""
    return sorted({round(k) for k in np.linspace(1, blocks, min(blocks, _PANELS))})


def embedded(group: Group) -> Activations | None:
    """Of the group's first seed that kept its activations."""
    return next((run.activations for run in group.runs if run.activations is not None), None)


def layer_embeddings(groups: Sequence[Group]) -> Figure:
    """A row a group, a panel a layer, a point a sample, a colour a class."""
    known = [(group, found) for group in groups if (found := embedded(group)) is not None]
    columns = max(len(shown_layers(len(found.blocks))) for _, found in known)
    figure, axes = canvas(len(known), columns, 2.0)
    classes = np.unique(np.concatenate([found.labels for _, found in known]))
    palette = colormaps["tab10" if len(classes) <= _LEGEND else "gist_rainbow"]
    colours = palette(np.arange(len(classes)) if len(classes) <= _LEGEND else np.linspace(0, 1, len(classes)))
    for i, ((_, found), name) in enumerate(zip(known, labels([group for group, _ in known]), strict=True)):
        row = axes[i * columns : (i + 1) * columns]
        layers = shown_layers(len(found.blocks))
        for axis, k in zip(row, layers, strict=False):
            points = embed(found.blocks[k - 1][:_SAMPLES])
            index = np.searchsorted(classes, found.labels[:_SAMPLES])
            axis.scatter(points[:, 0], points[:, 1], s=3, c=colours[index], linewidths=0, rasterized=True)
            axis.set_title(f"block {k}")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set(visible=True, color="#cccccc")
        row[0].set_ylabel(name)
        for axis in row[len(layers) :]:
            axis.remove()
    if len(classes) <= _LEGEND:
        dots = [axes[0].scatter([], [], s=16, color=[tint]) for tint in colours]
        figure.legend(
            dots,
            [f"class {classes[0]}", *map(str, classes[1:])],
            loc="outside upper left",
            ncols=len(classes),
            handletextpad=0,
        )
    return figure
