"""Networks of the user's own."""

from importlib import import_module
from inspect import signature

from torch import nn

from counterflow.config import CustomConfig


def custom(config: CustomConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """What ``config.target`` returns when called with ``config.args``, for samples of any shape.

    Its entries are the layers, so none may change its input in place or share parameters with another. Raises
    ``ValueError`` if the target is not found, does not take the arguments, or returns anything else.
    """
    module, _, name = config.target.rpartition(".")
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model.target={config.target}: {str(error).splitlines()[0]}") from error
    if not callable(factory):
        raise ValueError(f"model.target={config.target}: must be callable, is {type(factory).__name__}")
    try:
        signature(factory).bind(**config.args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.args={config.args}: {error}, for {config.target}") from error
    network = factory(**config.args)
    if not isinstance(network, nn.Sequential):
        raise ValueError(
            f"model.target={config.target}: must return an nn.Sequential, returned {type(network).__name__}"
        )
    for index, layer in enumerate(network):
        first = next(module for module in layer.modules() if not list(module.children()))
        if getattr(first, "inplace", False):
            raise ValueError(
                f"model.target={config.target}: layer {index} must not change its input in place, begins with {first}"
            )
    return network
