"""Which figures the runs of a comparison give."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from counterflow.report.blocks import (
    accuracy_by_blocks,
    accuracy_by_layers,
    block_accuracies,
    have_blocks,
    plain,
    vary_in_blocks,
    vary_in_layers,
)
from counterflow.report.comparison import Comparison
from counterflow.report.cost import accuracy_by_cost, vary_in_cost
from counterflow.report.distance import class_distances
from counterflow.report.embedding import embedded, layer_embeddings
from counterflow.report.group import BASELINE, Group
from counterflow.report.learning import accuracy_curves, associated_curves, associated_losses, learning_curves


@dataclass(frozen=True)
class Plot:
    name: str
    """Of its files, without their ending; no two of a report are equal."""
    caption: str
    groups: Sequence[Group]
    """Whose runs it shows."""
    function: Callable[[Sequence[Group]], Figure]

    def draw(self) -> Figure:
        return self.function(self.groups)


_SPREAD = "Error bars are a standard deviation over seeds."


def figures(comparison: Comparison) -> Iterator[Plot]:
    names: dict[str, int] = {}

    def plot(kind: str, where: str, groups: Sequence[Group], caption: str, draw: Callable[..., Figure]) -> Plot:
        name = f"{comparison.slug}-{kind}{where}"
        names[name] = names.get(name, 0) + 1
        return Plot(name if names[name] == 1 else f"{name}-{names[name]}", caption, groups, draw)

    kinds = _kinds(comparison)
    for groups in kinds:
        if vary_in_layers(groups):
            what, where = _place(groups, len(kinds))
            caption = f"Accuracy against the number of layers{what}. {_SPREAD}"
            yield plot("layers", where, groups, caption, accuracy_by_layers)
    for groups in comparison.networks:
        what, where = _place(groups, len(comparison.networks))
        if vary_in_blocks(groups):
            caption = f"Accuracy against the number of blocks{what}. {_SPREAD}"
            yield plot("blocks", where, groups, caption, accuracy_by_blocks)
        if vary_in_cost(groups):
            caption = f"Accuracy against the work of the local rule beside the network{what}. {_SPREAD}"
            yield plot("flops", where, groups, caption, accuracy_by_cost)
        settings = _settings(groups)
        for blocks, part in settings:
            place = f"{what}, {blocks} block{'s' * (blocks != 1)}"
            file = f"{where}-{blocks}-blocks" if len(settings) > 1 else where
            for kind, there, caption, draw in _OF_A_SETTING:
                shown = [group for group in part if there(group)]
                if shown:
                    yield plot(kind, file, shown, caption.format(place), draw)
            if have_blocks(part):
                caption = f"Accuracy of every block by itself after training{place}. {_SPREAD}"
                yield plot("block-accuracy", file, part, caption, block_accuracies)


_OF_A_SETTING: Sequence[tuple[str, Callable[[Group], bool], str, Callable[[Sequence[Group]], Figure]]] = (
    (
        "curves",
        lambda group: any(len(curve.batches) > 1 for curve in accuracy_curves(group)),
        "Accuracy on held-out data during training{}: mean over seeds, with a band of a standard deviation.",
        learning_curves,
    ),
    (
        "associated-loss",
        lambda group: any(len(curve.batches) > 1 for curve in associated_curves(group)),
        "Associated loss of every layer during training{}, mean over seeds.",
        associated_losses,
    ),
    (
        "distances",
        lambda group: embedded(group) is not None,
        "Mean distance between the centroids of classes, mean distance of samples to the centroid of their class, and "
        f"the ratio of the two, after every block{{}}; Euclidean, on test samples. {_SPREAD}",
        class_distances,
    ),
    (
        "tsne",
        lambda group: embedded(group) is not None,
        "t-SNE of what the blocks put out for test samples{}, first seed of each.",
        layer_embeddings,
    ),
)


def _kinds(comparison: Comparison) -> Sequence[Sequence[Group]]:
    """The groups by data and model, whatever the options of the model."""
    parts: dict[tuple[str, str], list[Group]] = {}
    for group in comparison.groups:
        parts.setdefault((group.first.data, group.first.model), []).append(group)
    return list(parts.values())


def _settings(groups: Sequence[Group]) -> Sequence[tuple[int, Sequence[Group]]]:
    """The groups of a network by their number of blocks, backprop in each."""
    base = plain(groups)
    found = []
    for blocks in sorted({group.first.blocks for group in groups}):
        part = [group for group in groups if group.first.blocks == blocks]
        if base is not None and all(group.first.algorithm != BASELINE for group in part):
            part.insert(0, base)
        if base is None or any(group.first.algorithm != BASELINE for group in part) or len(groups) == len(part):
            found.append((blocks, part))
    return found


def _place(groups: Sequence[Group], networks: int) -> tuple[str, str]:
    """What a caption and a file name say about the network; the latter nothing where there is only one."""
    first = groups[0].first
    where = f"-{first.data}-{first.model}" if networks > 1 else ""
    return f", {first.data}, {first.model}", where
