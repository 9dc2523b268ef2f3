"""Selection of the plots that the runs of a comparison allow."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from counterflow.report.activation_plots import class_distances, first_activations, layer_embeddings
from counterflow.report.groups import Comparison, ConfigGroup, beside_backprop, partition
from counterflow.report.line_data import (
    blocks_predict,
    costs_vary,
    plain_backprop,
    varies,
    with_curves,
    with_exits,
)
from counterflow.report.line_plots import (
    accuracy_by_blocks,
    accuracy_by_cost,
    accuracy_by_exit,
    accuracy_by_layers,
    associated_losses,
    block_accuracies,
    learning_curves,
)
from counterflow.report.text_data import with_positions, with_texts
from counterflow.report.text_plots import bits_by_cost, bits_by_position

_Groups = Sequence[ConfigGroup]
_Kind = tuple[str, str, Callable[[_Groups], _Groups], Callable[[_Groups], Figure] | None]
"""Name, caption with ``{}`` for the data, the model and the blocks, selection of the groups that it can show (none if
there is nothing to see), and drawing of them (None for plots of ``index.html`` alone)."""
_SPREAD = "Error bars are a standard deviation over seeds."


@dataclass(frozen=True)
class Plot:
    name: str
    """Name of its files, without their ending; no two of a report are equal."""
    caption: str
    groups: _Groups
    """Groups whose runs it shows."""
    kind: str
    draw: Callable[[], Figure] | None


_BY_MODEL: Sequence[_Kind] = [
    (
        "layers",
        f"Accuracy against the number of layers{{}}. {_SPREAD}",
        lambda groups: groups if varies(groups, "layers") else (),
        accuracy_by_layers,
    )
]
_BY_NETWORK: Sequence[_Kind] = [
    (
        "blocks",
        f"Accuracy against the number of blocks{{}}. {_SPREAD}",
        lambda groups: groups if varies(beside_backprop(groups), "blocks") else (),
        accuracy_by_blocks,
    ),
    (
        "flops",
        f"Accuracy against the work of the local rule beside the network{{}}. {_SPREAD}",
        lambda groups: groups if costs_vary(groups) else (),
        accuracy_by_cost,
    ),
    (
        "lm",
        "Bits per byte of held-out text against tokens, wall-clock time and FLOPs of training{}: mean over seeds, with "
        "a band of a standard deviation. Times are to be compared on equal machines only.",
        with_texts,
        bits_by_cost,
    ),
]
_BY_BLOCKS: Sequence[_Kind] = [
    (
        "curves",
        "Accuracy on held-out data during training{}: mean over seeds, with a band of a standard deviation.",
        lambda groups: with_curves(groups, "validation", "accuracy"),
        learning_curves,
    ),
    (
        "positions",
        "Bits per byte of every block by the position in the window{}, after training, mean over seeds: they fall "
        "where a block uses the tokens before.",
        with_positions,
        bits_by_position,
    ),
    (
        "loss",
        "Loss of every block during training{}: of single batches, mean over seeds. Each rule has a loss of its own; "
        "only curves of one rule can be compared.",
        lambda groups: with_curves(groups, "train", "loss"),
        None,
    ),
    (
        "associated-loss",
        "Associated loss of every layer during training{}, mean over seeds.",
        lambda groups: with_curves(groups, "train", "associated"),
        associated_losses,
    ),
    (
        "distances",
        "Mean distance between the centroids of classes, mean distance of samples to the centroid of their class, and "
        f"the ratio of the two, of the inputs and after every block{{}}; Euclidean, on test samples. {_SPREAD}",
        lambda groups: [group for group in groups if first_activations(group)],
        class_distances,
    ),
    (
        "tsne",
        "t-SNE of test samples and of what the blocks put out for them{}, first seed of each.",
        lambda groups: [group for group in groups if first_activations(group)],
        layer_embeddings,
    ),
    (
        "block-accuracy",
        f"Accuracy of every block by itself after training{{}}. {_SPREAD}",
        lambda groups: groups if blocks_predict(groups) else (),
        block_accuracies,
    ),
    (
        "exits",
        f"Accuracy against FLOPs of predictions that end at a block, from the lowest to the top{{}}. {_SPREAD}",
        with_exits,
        accuracy_by_exit,
    ),
]


def plots(comparison: Comparison) -> Iterator[Plot]:
    """The plots of a comparison: by model, then by network, and within a network by its number of blocks."""
    names: Counter[str] = Counter()
    for kinds, where, suffix, groups in _sections(comparison):
        for kind, caption, select, draw in kinds:
            shown = select(groups)
            if shown:
                name = f"{comparison.slug}-{kind}{suffix}"
                names[name] += 1
                number = f"-{names[name]}" if names[name] > 1 else ""
                drawing = partial(draw, shown) if draw else None
                yield Plot(name + number, caption.format(where), shown, kind, drawing)


def _sections(comparison: Comparison) -> Iterator[tuple[Sequence[_Kind], str, str, _Groups]]:
    """Kinds of plots, the place that captions name, the end of file names, and the groups to choose from."""
    models = partition(comparison.groups, lambda group: (group.first["data"], group.first["model"]))
    for groups in models:
        yield _BY_MODEL, *_network_names(groups, len(models)), groups
    networks = partition(comparison.groups, lambda group: group.network)
    for groups in networks:
        where, suffix = _network_names(groups, len(networks))
        yield _BY_NETWORK, where, suffix, groups
        parts = _by_blocks(groups)
        for blocks, part in parts:
            file = f"{suffix}-{blocks}-blocks" if len(parts) > 1 else suffix
            yield _BY_BLOCKS, f"{where}, {blocks} block{'s' * (blocks != 1)}", file, part


def _by_blocks(groups: _Groups) -> Sequence[tuple[int, _Groups]]:
    """The groups of a network by their number of blocks, backprop in each."""
    backprop = plain_backprop(groups)
    parts = {
        blocks: [group for group in groups if group.first["blocks"] == blocks]
        for blocks in sorted({group.first["blocks"] for group in groups})
    }
    if backprop is None or len(parts) == 1:
        return list(parts.items())
    return [
        (blocks, part if len(part) > len(local) else [backprop, *part])
        for blocks, part in parts.items()
        if (local := beside_backprop(part))
    ]


def _network_names(groups: _Groups, count: int) -> tuple[str, str]:
    """Data and model in a caption and in a file name; the latter is empty if there is only one network."""
    first = groups[0].first
    return f", {first['data']}, {first['model']}", f"-{first['data']}-{first['model']}" if count > 1 else ""
