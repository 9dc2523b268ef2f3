"""Layers that do not learn: no gradients, no updates, no new statistics, no dropout."""

from collections.abc import Iterable, Sequence

from torch import nn


def freeze(network: nn.Sequential, layers: Sequence[int | str]) -> frozenset[str]:
    """Stop ``layers``, indices or names of entries of ``network``, from learning, and put them in evaluation mode.

    Returns:
        The names of the entries.

    Raises:
        ValueError: There is no such layer, or none is left that learns.
    """
    entries = list(network._modules)  # not named_children: that leaves out a module that comes twice
    names = set()
    for layer in layers:
        name = entries[layer] if isinstance(layer, int) and layer < len(entries) else layer
        if name not in entries:
            raise ValueError(
                f"model.freeze={list(layers)}: {layer} is no layer, allowed are 0 to {len(entries) - 1} and the names "
                f"{', '.join(entries)}"
            )
        names.add(str(name))
    for name in names:
        network.get_submodule(name).eval().requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"model.freeze={list(layers)}: must leave a layer that learns")
    return frozenset(names)


def train_unfrozen(module: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Put ``module`` in training mode, but for its layers ``frozen``."""
    module.train()
    for layer in frozen:
        layer.eval()
