"""Initial weights from a file: those that another run left, or those of torchvision's residual networks."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from counterflow.config import ModelConfig, ResNet20Config, ResNetConfig
from counterflow.models.torchvision_names import to_torchvision

_COUNTER = "num_batches_tracked"
"""Buffer of batch norm that older files do not have."""


def load_initial_weights(network: nn.Sequential, config: ModelConfig) -> list[str]:
    """Copy the weights in the file ``config.init`` into ``network``, but for layers on the meta device.

    The output layer is the last module with parameters. If the file does not have it, or has it in another shape, as
    for other classes, then it stays as it is.

    Returns:
        The names of the output layer's parameters if it stays as it is.

    Raises:
        ValueError: The file cannot be read, or is of another network; the line names the first parameter that does not
            fit, and how many more there are.
    """
    assert config.init is not None, "the caller looks"
    key = f"model.init={config.init}"
    found = _read(Path(config.init).expanduser(), key)
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    names = _names_in_file(own, found, config)
    output = _output_layer(network)
    kept = output if any(_fault(found.get(names[name]), own[name]) for name in output) else []
    faults = [
        f"{there} {fault}"
        for name, there in names.items()
        if name not in kept and (fault := _fault(found.get(there), own[name]))
    ]
    faults += [f"{there} is not in the network" for there in found if there not in names.values()]
    if faults:
        more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
        small = isinstance(config, ResNetConfig) and config.stem == "small"
        hint = "; torchvision's stem is model.stem=imagenet" if small and faults[0].startswith("conv1.") else ""
        raise ValueError(f"{key}: {faults[0]}{more}{hint}")
    with torch.no_grad():
        for name in names.keys() - kept:
            if not own[name].is_meta:
                own[name].copy_(found[names[name]])
    return kept


def _names_in_file(own: Iterable[str], found: Collection[str], config: ModelConfig) -> dict[str, str]:
    """The name in a file with the names ``found`` of each parameter and buffer in ``own``, but for those of old files
    without counters."""
    names = {name: name for name in own}
    # resnet20 and resnet32 have shortcuts that torchvision does not know.
    if "conv1.weight" in found and isinstance(config, ResNetConfig) and not isinstance(config, ResNet20Config):
        names = {name: to_torchvision(name, config.stages) for name in own}
    return {name: there for name, there in names.items() if there in found or not there.endswith(_COUNTER)}


def _read(path: Path, key: str) -> Mapping[str, Tensor]:
    """Tensors by name. Nothing in the file is executed."""
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            # Mapped where the format allows it: a process may need a few layers alone.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    # Both readers report damage by exceptions of many types.
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{key}: cannot be read ({reason})") from error
    if not (isinstance(found, Mapping) and all(isinstance(value, Tensor) for value in found.values())):
        raise ValueError(f"{key}: must hold a state dict, tensors by name")
    return found


def _output_layer(network: nn.Sequential) -> list[str]:
    """Names of the parameters of the last module that has any of its own."""
    owners = [name.rpartition(".")[0] for name, _ in network.named_parameters()]
    return [name for name, _ in network.named_parameters() if name.rpartition(".")[0] == owners[-1]] if owners else []


def _fault(found: Tensor | None, own: Tensor) -> str:
    """Why ``found`` cannot take the place of ``own``; empty if it can."""
    if found is None:
        return "is missing"
    if found.shape != own.shape or found.is_floating_point() != own.is_floating_point():
        kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (found, own)]
        return f"is {kinds[0]}, must be {kinds[1]}"
    return ""
