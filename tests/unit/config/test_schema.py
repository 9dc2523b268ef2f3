"""Every limit of the schema, met once from outside and at its edge from inside."""

from dataclasses import asdict
from typing import Any

import pytest

from counterflow.cli.hydra_app import load_config
from tests.helpers.configs import configured

CNN = "model=cnn"
SGD = "optimizer=sgd"

REFUSED = [
    (["seed=-1"], "seed=-1: must be at least 0"),
    (["blocks=0"], "blocks=0: must be at least 1 and at most 1048576"),
    (["device=tpu"], "device=tpu: allowed are auto, cpu, cuda"),
    # algorithm
    (["algorithm.name=foo"], "algorithm.name=foo: allowed are bll"),
    (
        ["algorithm.latent.family=poisson"],
        "algorithm.latent.family=poisson: allowed are gaussian, bernoulli, categorical",
    ),
    (["algorithm.latent.categories=1"], "algorithm.latent.categories=1: must be at least 2 and at most 1048576"),
    (["algorithm.head.convolutions=-1"], "algorithm.head.convolutions=-1: must be at least 0 and at most 1048576"),
    (["algorithm.head.width=0"], "algorithm.head.width=0: must be at least 1 and at most 1048576"),
    (["algorithm.head.dim=0"], "algorithm.head.dim=0: must be at least 1 and at most 1048576"),
    (["algorithm.feedback.kind=cnn"], "algorithm.feedback.kind=cnn: allowed are linear, mlp"),
    (["algorithm.feedback.hidden=0"], "algorithm.feedback.hidden=0: must be at least 1 and at most 1048576"),
    (["algorithm.feedback.norm=0"], "algorithm.feedback.norm=0.0: must be greater than 0"),
    (["algorithm.feedback.norm=nan"], "algorithm.feedback.norm=nan: must be greater than 0"),
    (["algorithm.feedback.lr_scale=-0.1"], "algorithm.feedback.lr_scale=-0.1: must be at least 0 and at most 1e+06"),
    (["algorithm.feedback.refresh=0"], "algorithm.feedback.refresh=0: must be at least 1"),
    # model
    (["model.cut=layers"], "model.cut=layers: allowed are flops, parameters, profile"),
    (["model.cut=3"], "model.cut=3: allowed are flops, parameters, profile, or a list of layer counts"),
    (["model.cut=[]"], "model.cut=[]: allowed are flops, parameters, profile, or a list of layer counts"),
    (
        ["model.cut=[2,1,1,0]"],
        "model.cut=[2, 1, 1, 0]: allowed are flops, parameters, profile, or a list of layer counts",
    ),
    (
        ["model.cut=[2,1,1,1.5]"],
        "model.cut=[2, 1, 1, 1.5]: allowed are flops, parameters, profile, or a list of layer counts",
    ),
    (
        ["model.cut=[2,1,1,true]"],
        "model.cut=[2, 1, 1, True]: allowed are flops, parameters, profile, or a list of layer counts",
    ),
    (["model.cut=[2,3]"], "model.cut=[2, 3]: must name one layer count for each of blocks=4"),
    (["model.cut=[2,3]", "blocks=3"], "model.cut=[2, 3]: must name one layer count for each of blocks=3"),
    (["model.name=cnn"], "model.name=cnn: allowed are mlp"),
    (["model.width=0"], "model.width=0: must be at least 1 and at most 1048576"),
    (["model.hidden=0"], "model.hidden=0: must be at least 1 and at most 1048576"),
    (["model.norm=group"], "model.norm=group: allowed are none, layer, batch"),
    (["model.dropout=-0.1"], "model.dropout=-0.1: must be at least 0 and below 1"),
    (["model.dropout=1"], "model.dropout=1.0: must be at least 0 and below 1"),
    (["model.dropout=nan"], "model.dropout=nan: must be at least 0 and below 1"),
    ([CNN, "model.name=mlp"], "model.name=mlp: allowed are cnn"),
    ([CNN, "model.cut=layers"], "model.cut=layers: allowed are flops, parameters, profile"),
    ([CNN, "model.channels=[]"], "model.channels=[]: must be a list of positive numbers"),
    ([CNN, "model.channels=[8,0]"], "model.channels=[8, 0]: must be a list of positive numbers"),
    (
        [CNN, "model.channels=[8,8]", "model.strides=[1]"],
        "model.strides=[1]: must be 2 positive numbers, one a convolution",
    ),
    (
        [CNN, "model.channels=[8,8]", "model.strides=[1,0]"],
        "model.strides=[1, 0]: must be 2 positive numbers, one a convolution",
    ),
    ([CNN, "model.norm=layer"], "model.norm=layer: allowed are none, batch"),
    ([CNN, "model.dropout=1"], "model.dropout=1.0: must be at least 0 and below 1"),
    (["model=resnet18", "model.name=resnet50"], "model.name=resnet50: allowed are resnet18"),
    (["model=resnet18", "model.cut=layers"], "model.cut=layers: allowed are flops, parameters, profile"),
    # data
    (["data.padding=-1"], "data.padding=-1: must be at least 0 and at most 1048576"),
    # optimizer
    (["optimizer.name=sgd"], "optimizer.name=sgd: allowed are adamw"),
    (["optimizer.lr=-1"], "optimizer.lr=-1.0: must be at least 0 and at most 1e+06"),
    (["optimizer.lr=nan"], "optimizer.lr=nan: must be at least 0 and at most 1e+06"),
    (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1.0: must be at least 0 and at most 1e+06"),
    (["optimizer.schedule=step"], "optimizer.schedule=step: allowed are constant, cosine, linear"),
    (["optimizer.warmup=-1"], "optimizer.warmup=-1: must be at least 0"),
    (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9]: must be two numbers"),
    (["optimizer.betas=[0.9,1]"], "optimizer.betas=1.0: must be at least 0 and below 1"),
    (["optimizer.betas=[-0.5,0.9]"], "optimizer.betas=-0.5: must be at least 0 and below 1"),
    ([SGD, "optimizer.name=adamw"], "optimizer.name=adamw: allowed are sgd"),
    ([SGD, "optimizer.lr=-1"], "optimizer.lr=-1.0: must be at least 0 and at most 1e+06"),
    ([SGD, "optimizer.momentum=1"], "optimizer.momentum=1.0: must be at least 0 and below 1"),
    (
        [SGD, "optimizer.delay_corrected=true", "optimizer.momentum=0"],
        "optimizer.delay_corrected=true: needs optimizer.momentum greater than 0",
    ),
    (
        [SGD, "optimizer.delay_corrected=true", "optimizer.nesterov=true"],
        "optimizer.delay_corrected=true: is Nesterov's, allowed for optimizer.nesterov is false",
    ),
    (
        ["optimizer.delay_corrected=true", "optimizer.betas=[0,0.9]"],
        "optimizer.delay_corrected=true: needs a first number of optimizer.betas greater than 0",
    ),
    (
        [SGD, "optimizer.nesterov=true", "optimizer.momentum=0"],
        "optimizer.nesterov=true: needs optimizer.momentum greater than 0",
    ),
    (["schedule=pipedream", "optimizer.clip=1"], "optimizer.clip=1: allowed for schedule=pipedream is 0"),
    (["schedule=naive", "optimizer.clip=0.5"], "optimizer.clip=0.5: allowed for schedule=naive is 0"),
    # engine
    (
        ["schedule=pipedream", "engine.lag=exact"],
        "engine.lag=exact: allowed for schedule=pipedream are whole numbers of at least 1",
    ),
    (
        ["schedule=naive", "engine.lag=exact"],
        "engine.lag=exact: allowed for schedule=naive are whole numbers of at least 1",
    ),
    (
        ["schedule=pipedream", "engine.compile=true"],
        "engine.compile=true: allowed for schedule=pipedream is false",
    ),
    (["engine.lag=0"], "engine.lag=0: allowed are exact and whole numbers of at least 1"),
    (["engine.lag=1.5"], "engine.lag=1.5: allowed are exact and whole numbers of at least 1"),
    (["engine.lag=none"], "engine.lag=none: allowed are exact and whole numbers of at least 1"),
    (["engine.lag=null"], "engine.lag=None: allowed are exact and whole numbers of at least 1"),
    (["engine.lag=true"], "engine.lag=True: allowed are exact and whole numbers of at least 1"),
    (["engine.depth=0"], "engine.depth=0: must be at least 1 and at most 1048576"),
    (
        ["engine.target_depth=2", "engine.lag=3"],
        "engine.target_depth=2: must be at least engine.lag=3, "
        "or the prologue and a full activation channel block each other",
    ),
    (
        ["engine.secret_file=FILE"],
        "engine.secret_file=FILE: guards the sockets of engine.recovery=rank, allowed with engine.recovery=all is null",
    ),
    (["engine.threads=0"], "engine.threads=0: allowed are auto and whole numbers of at least 1"),
    (["engine.threads=all"], "engine.threads=all: allowed are auto and whole numbers of at least 1"),
    (["engine.threads=true"], "engine.threads=True: allowed are auto and whole numbers of at least 1"),
    (["engine.backend=mpi"], "engine.backend=mpi: allowed are auto, gloo, nccl"),
    (["engine.wire=int4"], "engine.wire=int4: allowed are fp32, bf16, int8"),
    (["engine.timeout=0"], "engine.timeout=0.0: must be greater than 0 and at most 1000000"),
    (["engine.timeout=nan"], "engine.timeout=nan: must be greater than 0 and at most 1000000"),
    (["engine.timeout=inf"], "engine.timeout=inf: must be greater than 0 and at most 1000000"),
    # train
    (["model.width=2147483648"], "model.width=2147483648: must be at least 1 and at most 1048576"),
    (["optimizer.lr=1e300"], "optimizer.lr=1e+300: must be at least 0 and at most 1e+06"),
    (["run.activations=-1"], "run.activations=-1: must be at least 0"),
    (["checkpoint.every=-1"], "checkpoint.every=-1: must be at least 0"),
    (["checkpoint.keep=0"], "checkpoint.keep=0: must be at least 1"),
    (["checkpoint.grace=0"], "checkpoint.grace=0.0: must be greater than 0 and at most 1000000"),
    (["train.epochs=0"], "train.epochs=0: must be at least 1"),
    (["train.batch_size=0"], "train.batch_size=0: must be at least 1"),
    (["train.steps=0"], "train.steps=0: must be at least 1"),
    (["train.evaluate_every=-1"], "train.evaluate_every=-1: must be at least 0"),
    (["train.log_every=0"], "train.log_every=0: must be at least 1"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[" ".join(overrides) for overrides, _ in REFUSED])
def test_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        configured(*overrides)
    assert str(error.value) == message


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^data\.name=nope: allowed are digits, fashion_mnist\b[^\n]*$"):
        load_config(["data.name=nope"])


def test_target_depth_needs_one_place_where_nothing_is_late() -> None:
    with pytest.raises(ValueError, match=r"^engine\.target_depth=0: must be at least \S*=?1\b[^\n]*$"):
        load_config(["engine.target_depth=0", "engine.lag=exact"])


EDGES: list[dict[str, Any]] = [
    {
        "seed": 0,
        "blocks": 1,
        "device": "cpu",
        "algorithm.latent.family": "categorical",
        "algorithm.latent.categories": 2,
        "algorithm.head.convolutions": 0,
        "algorithm.head.width": 1,
        "algorithm.head.dim": 1,
        "algorithm.feedback.kind": "linear",
        "algorithm.feedback.hidden": 1,
        "algorithm.feedback.norm": 1e-3,
        "algorithm.feedback.lr_scale": 0.0,
        "algorithm.feedback.refresh": 1,
        "model.cut": [5],
        "model.width": 1,
        "model.hidden": 1,
        "model.norm": "none",
        "model.dropout": 0.0,
        "data.padding": 0,
        "optimizer.lr": 0.0,
        "optimizer.weight_decay": 0.0,
        "optimizer.schedule": "constant",
        "optimizer.warmup": 0,
        "optimizer.betas": [0.0, 0.0],
        "engine.lag": 1,
        "engine.depth": 1,
        "engine.target_depth": 1,
        "engine.threads": 1,
        "engine.backend": "nccl",
        "engine.timeout": 1e-3,
        "train.epochs": 1,
        "train.batch_size": 1,
        "train.steps": 1,
        "train.evaluate_every": 0,
        "train.log_every": 1,
    },
    {
        "model": "cnn",
        "model.channels": [1],
        "model.strides": [1],
        "model.norm": "none",
        "model.dropout": 0.99,
        "model.cut": "profile",
        "optimizer": "sgd",
        "optimizer.momentum": 0.0,
        "engine.lag": "exact",
        "engine.target_depth": 1,
        "engine.threads": "auto",
        "train.steps": None,
    },
    {"optimizer": "sgd", "optimizer.momentum": 0.01, "optimizer.nesterov": True},
    {"optimizer": "sgd", "optimizer.momentum": 0.01, "optimizer.delay_corrected": True},
    {"optimizer.betas": [0.01, 0.0], "optimizer.delay_corrected": True},
    {"algorithm": "bp", "schedule": "pipedream", "engine.lag": 1, "engine.recompute": True},
    {"engine.lag": 3, "engine.target_depth": 3, "engine.timeout": 1e6},
]


@pytest.mark.parametrize("values", EDGES)
def test_the_edge_of_what_is_allowed_is_taken(values: dict[str, Any]) -> None:
    overrides = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    config = asdict(load_config(overrides))
    for key, value in values.items():
        found: Any = config
        for name in key.split("."):
            found = found[name]
        assert (found["name"] if key in ("algorithm", "model", "optimizer") else found) == value, key
