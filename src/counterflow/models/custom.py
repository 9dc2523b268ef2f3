"""Networks of the user's own, by the name of their factory or from the Trainer."""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any

from torch import nn

from counterflow.config import CustomConfig


def custom(config: CustomConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Network that ``config.target`` returns when called with ``config.args``, for samples of any shape.

    Raises ``ValueError`` if the target is not found or does not take the arguments, and as `check_network` does.
    """
    factory = named_object("model", config.target)
    what = f"model.target={config.target}"
    if not callable(factory):
        raise ValueError(f"{what}: must be callable, is {type(factory).__name__}")
    check_arguments("model", config.target, factory, config.args)
    return check_network(factory(**config.args), what)


def named_object(group: str, target: str) -> Any:
    """Import the object that ``GROUP.target`` names, ``package.module.object``; ``ValueError`` if it is not found."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{group}.target={target}: {str(error).splitlines()[0]}") from error


def check_arguments(
    group: str, target: str, factory: Callable[..., object], args: dict[str, Any], *first: object
) -> None:
    """Raise ``ValueError`` if ``factory``, which ``GROUP.target`` names, does not take ``first`` and ``GROUP.args``."""
    try:
        signature(factory).bind(*first, **args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{group}.args={args}: {error}, for {target}") from error


def check_network(network: object, what: str) -> nn.Sequential:
    """Return ``network`` if its entries can be layers of different blocks.

    Blocks run apart from each other, so a layer must not change its input, which is the output of the block below, and
    must not share parameters with another layer. Raises ``ValueError`` beginning with ``what``, which names the
    network or its factory.
    """
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"{what}: the network must be an nn.Sequential, is {type(network).__name__}")
    if not network:
        raise ValueError(f"{what}: the network must have layers, has none")
    owners: dict[nn.Parameter, int] = {}
    for index, layer in enumerate(network):
        first = next(module for module in layer.modules() if not list(module.children()))
        if getattr(first, "inplace", False):
            raise ValueError(f"{what}: layer {index} must not change its input in place, begins with {first}")
        for name, parameter in layer.named_parameters():
            owner = owners.setdefault(parameter, index)
            if owner != index:
                raise ValueError(f"{what}: layer {index} must not share parameters, its {name} is one of layer {owner}")
    return network
