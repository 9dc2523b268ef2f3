"""Load a trained network from its run directory."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from counterflow import models
from counterflow.algorithms import ALGORITHMS, LocalRule, RuleContext, Task
from counterflow.config import MODELS, AdamW
from counterflow.inference.model_files import (
    BEST,
    DESCRIPTION,
    NETWORK,
    READOUTS,
    ModelDescription,
    ModelFiles,
    read_tensors,
)
from counterflow.inference.predictor import Normalisation, Predictor
from counterflow.models.custom import check_network, named_object
from counterflow.models.head import without_output_layer
from counterflow.models.partition import block_shapes, profile_layers, split_network

_Options = TypeVar("_Options")


def load(
    run: str | Path, *, blocks: int | None = None, model: nn.Sequential | None = None, best: bool = False
) -> Predictor:
    """The network of a finished run, ready to predict: on the CPU, in evaluation mode.

    Args:
        run: The run directory, or a copy of its ``model.json``, ``model.safetensors``, ``readouts.safetensors`` and, if
            it has one, ``tokenizer.json``.
        blocks: Predict with the readout of this block, by the layers up to it: an early exit. None is all blocks.
        model: A network of the run's architecture, which receives the weights. Needed where it was not made by an
            importable factory.
        best: The weights of the best evaluation, which a run with ``checkpoint.best=true`` keeps, in place of the last.
            They are those of the network alone: of its last block, and not of a rule that needs more to predict.

    Returns:
        A module from inputs as the data set has them (images uint8) to scores of the classes.

    Raises:
        ValueError: A file is missing or damaged, or the network is another one; one line.
    """
    folder = Path(run)
    files = ModelFiles.read(folder)
    described = files.description
    last = len(described.cut) if blocks is None else blocks
    if last not in described.exits:
        raise ValueError(
            f"blocks={last}: allowed are {', '.join(map(str, described.exits))}, the blocks of {folder} with a "
            "prediction of their own"
        )
    network = _network(folder, described) if model is None else check_network(model, "model")
    if best:
        if last < len(described.cut) or described.predicts_down:
            raise ValueError(f"best=True: {folder} keeps no readout of the best evaluation, allowed is the last block")
        _assign(network, read_tensors(folder / BEST), BEST, described.unused)
    else:
        _assign(network, files.network, NETWORK, described.unused)
    readout = _readout(network, files, last)
    ends = list(accumulate(described.cut))
    if last < len(described.cut):
        network = network[: ends[last - 1]]
    elif described.unused:
        network = _without_output_layer(network)
    images = described.mean is not None and described.std is not None
    normalisation = Normalisation(described.mean or (), described.std or ()) if images else nn.Identity()
    dtype = getattr(torch, described.input_type)
    predictor = Predictor(
        network,
        readout,
        normalisation,
        described.class_names,
        described.input_shape,
        dtype,
        described.tokens_per_byte,
        files.tokenizer,
    )
    return predictor.eval().requires_grad_(False)


def _network(folder: Path, described: ModelDescription) -> nn.Sequential:
    """The network, with weights that are about to be replaced."""
    options = dict(described.model)
    classes = {config.name: config for config in MODELS}
    shape, count = tuple(described.input_shape), len(described.class_names)
    if "digest" not in options:
        if options.get("name") not in classes:
            raise ValueError(f"{folder / DESCRIPTION}: model={options.get('name')}: allowed are {', '.join(classes)}")
        return models.build(_options(classes[options["name"]], options, folder), shape, count, seed=0)
    target = options["target"]
    try:
        factory = None if options["digest"] else named_object("model", target)
    except ValueError:
        factory = None
    if not callable(factory):
        raise ValueError(f"run={folder}: its network, {target}, cannot be imported; build it, and pass it as model=")
    return check_network(factory(), f"model.target={target}")


def _readout(network: nn.Sequential, files: ModelFiles, last: int) -> nn.Module:
    """The module from the output of block ``last`` to scores: its readout and, where predictions come down, all
    decoders from there to the bottom."""
    names = [f"block.{last}.readout"]
    if files.description.predicts_down:
        names += [f"block.{block}.decoder" for block in range(last, 0, -1)]
    if not any(key.startswith(f"{names[0]}.") for key in files.readouts):
        return nn.Identity()  # the network's output is the scores
    rules = _rules(network, files.description, last)
    modules = []
    for name in names:
        rule = rules[int(name.split(".")[1])]
        module = rule.readout_module() if name.endswith("readout") else rule.decoder_module()
        if module is None:
            raise ValueError(f"{READOUTS}: has {name}, which this version of the learning rule has not")
        prefix = f"{name}."
        state = {key.removeprefix(prefix): t for key, t in files.readouts.items() if key.startswith(prefix)}
        _assign(module, state, f"{READOUTS}, {name}")
        modules.append(module)
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _rules(network: nn.Sequential, described: ModelDescription, last: int) -> dict[int, LocalRule]:
    """The rules of the blocks that the exit at block ``last`` needs."""
    example = torch.zeros(1, *described.input_shape, dtype=torch.float32)
    example = example.long() if described.input_type == "int64" else example
    layers = profile_layers(network, example)
    task = Task(tuple(described.input_shape), len(described.class_names), tuple(described.label_shape))
    name = described.algorithm["name"]
    if name not in ALGORITHMS:
        raise ValueError(f"{DESCRIPTION}: algorithm={name}: allowed are {', '.join(ALGORITHMS)}")
    config = _options(ALGORITHMS[name], described.algorithm, Path(DESCRIPTION))
    context = RuleContext(
        split_network(network, described.cut), block_shapes(layers, described.cut), task, AdamW(), batches=1, seed=0
    )
    rules = config.rule_set(context)
    blocks = range(1, last + 1) if described.predicts_down else [last]
    return {block: rules.rule(block) for block in blocks}


def _without_output_layer(network: nn.Sequential) -> nn.Sequential:
    rest, _ = without_output_layer(network, ())
    assert isinstance(rest, nn.Sequential)
    return rest


def _assign(module: nn.Module, state: Mapping[str, Tensor], where: str, unused: Sequence[str] = ()) -> None:
    """Copy ``state`` into ``module``. ``ValueError`` naming the first difference in names or shapes."""
    own = module.state_dict()
    for name in sorted(state.keys() ^ (own.keys() - set(unused))):
        lacking = "the network" if name in state else "it"
        raise ValueError(f"{where}: is of another architecture: {lacking} has no {name}")
    for name in sorted(state):
        there, here = list(state[name].shape), list(own[name].shape)
        if there != here:
            raise ValueError(f"{where}: is of another architecture: {name} has shape {there}, in the network {here}")
    module.load_state_dict(state, strict=False)


def _options(schema: type[_Options], values: Mapping[str, Any], source: Path) -> _Options:
    """The options ``values``, read from ``source``, as an object of the dataclass ``schema``, which checks them."""
    assert is_dataclass(schema)
    kinds: dict[str, Any] = {option.name: option.type for option in fields(schema)}
    unknown = values.keys() - kinds.keys()
    if unknown:
        raise ValueError(f"{source}: {min(unknown)}: no such option of {schema.__name__}")
    content = {
        name: _options(kinds[name], value, source) if is_dataclass(kinds[name]) else value
        for name, value in values.items()
    }
    return schema(**content)
