"""Networks of the user's own, by the name of their factory or from the Trainer."""

from importlib import import_module
from inspect import signature

from torch import nn

from counterflow.config import CustomConfig


def custom(config: CustomConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Network that ``config.target`` returns when called with ``config.args``, for samples of any shape.

    Raises ``ValueError`` if the target is not found or does not take the arguments, and as `check_network` does.
    """
    module, _, name = config.target.rpartition(".")
    what = f"model.target={config.target}"
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what}: {str(error).splitlines()[0]}") from error
    if not callable(factory):
        raise ValueError(f"{what}: must be callable, is {type(factory).__name__}")
    try:
        signature(factory).bind(**config.args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.args={config.args}: {error}, for {config.target}") from error
    return check_network(factory(**config.args), what)


def check_network(network: object, what: str) -> nn.Sequential:
    """Return ``network`` if its entries can be layers of different blocks.

    Blocks run apart from each other, so a layer must not change its input, which is the output of the block below, and
    must not share parameters with another layer. Raises ``ValueError`` beginning with ``what``, which names the
    network or its factory.
    """
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"{what}: the network must be an nn.Sequential, is {type(network).__name__}")
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
