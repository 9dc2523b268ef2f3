"""Properties of every network: the origin of its weights, and cuts between any two layers."""

import pytest
import torch
from torch import nn

from counterflow.config import (
    CNNConfig,
    CustomConfig,
    FastCNNConfig,
    MLPConfig,
    ModelConfig,
    ResNet20Config,
    ResNetConfig,
    TransformerConfig,
    VGGConfig,
)
from counterflow.config.model import GPTConfig
from counterflow.models import build
from counterflow.models.partition import block_sizes, profile_layers, split_network

NETWORKS = {
    "mlp": (MLPConfig(), (1, 8, 8)),
    "mlp, batch norm": (MLPConfig(norm="batch", width=32), (1, 8, 8)),
    "mlp, dropout": (MLPConfig(norm="none", dropout=0.5), (3, 5, 7)),
    "cnn": (CNNConfig(), (1, 28, 28)),
    "cnn, dropout": (CNNConfig(norm="none", dropout=0.5, channels=[4, 8], strides=[2, 2]), (3, 9, 9)),
    "vgg": (VGGConfig(width=0.05, hidden=[16], dropout=0.2), (1, 8, 8)),
    "vgg, no hidden layer": (VGGConfig(channels=[4, 8], pools=[3, 2], hidden=[]), (3, 9, 4)),
    "fastcnn": (FastCNNConfig(widths=[8, 8]), (3, 8, 6)),
    "resnet18": (ResNetConfig(), (3, 8, 8)),
    "resnet20": (ResNet20Config(), (3, 9, 7)),
    "custom": (CustomConfig(target="tests.helpers.networks.images", args={"width": 4}), (2, 3, 5)),
    "custom, sequences": (CustomConfig(target="tests.helpers.networks.sequences"), (6,)),
    "transformer": (TransformerConfig(layers=2, width=8, hidden=16), (6,)),
    "gpt": (GPTConfig(layers=2, width=8, heads=2, hidden=12, dropout=0.1), (6,)),
    "transformer, two heads, dropout": (TransformerConfig(layers=2, heads=2, width=8, dropout=0.2), (5,)),
}


@pytest.fixture(params=NETWORKS, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[ModelConfig, tuple[int, ...]]:
    return NETWORKS[request.param]


@pytest.fixture(scope="module")
def network(case: tuple[ModelConfig, tuple[int, ...]]) -> nn.Sequential:
    """Shared by the tests that only run it, in either mode."""
    config, shape = case
    return build(config, shape, 10, seed=1)


def samples(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(10, (count, *shape)) if len(shape) == 1 else torch.randn(count, *shape)


def assert_same(left: nn.Module, right: nn.Module) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), rtol=0, atol=0)


def test_weights_are_a_function_of_config_and_seed(case: tuple[ModelConfig, tuple[int, ...]]) -> None:
    config, shape = case
    torch.manual_seed(1)
    network = build(config, shape, 10, seed=3)
    torch.manual_seed(2)
    assert_same(network, build(config, shape, 10, seed=3))
    with pytest.raises(AssertionError):
        assert_same(network, build(config, shape, 10, seed=4))


def test_global_random_state_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def reseeded(seed: int) -> None:
        pytest.fail("build() reseeded the GPUs")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded)
    before = torch.get_rng_state()
    build(MLPConfig(), (1, 8, 8), 10, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_float32_on_the_cpu_and_trainable(case: tuple[ModelConfig, tuple[int, ...]]) -> None:
    config, shape = case
    network = build(config, shape, 10, seed=1)
    kinds = {(p.dtype, p.device.type, p.requires_grad) for p in network.parameters()}
    assert kinds == {(torch.float32, "cpu", True)}
    assert network.training


def test_output_is_one_logit_per_class_and_position(
    case: tuple[ModelConfig, tuple[int, ...]], network: nn.Sequential
) -> None:
    _, shape = case
    expected = (2, *shape, 10) if len(shape) == 1 else (2, 10)
    assert network(samples(2, shape)).shape == expected


@pytest.mark.parametrize("training", [True, False])
def test_blocks_in_order_are_the_network_for_every_number_of_blocks(
    case: tuple[ModelConfig, tuple[int, ...]], network: nn.Sequential, training: bool
) -> None:
    _, shape = case
    network.train(training)
    x = samples(2, shape)
    layers = profile_layers(network, x)
    with torch.no_grad():
        torch.manual_seed(5)
        whole = network(x)
        for n in range(1, len(network) + 1):
            blocks = split_network(network, block_sizes(layers, n, "parameters"))
            assert len(blocks) == n
            torch.manual_seed(5)
            activation = x
            for block in blocks:
                activation = block(activation)
            assert torch.equal(activation, whole)


@pytest.mark.parametrize("training", [True, False])
def test_no_layer_changes_its_input(
    case: tuple[ModelConfig, tuple[int, ...]], network: nn.Sequential, training: bool
) -> None:
    _, shape = case
    activation = samples(2, shape)
    for layer in network.train(training):
        before, version = activation.clone(), activation._version
        output = layer(activation)
        # The version also counts writes that happen to leave the values as they are.
        assert torch.equal(activation, before)
        assert activation._version == version
        activation = output.detach()


def test_every_parameter_of_every_layer_gets_a_gradient(case: tuple[ModelConfig, tuple[int, ...]]) -> None:
    config, shape = case
    activation = samples(4, shape)
    for layer in build(config, shape, 10, seed=1):
        source = activation.clone().requires_grad_(activation.is_floating_point())
        activation = layer(source)
        # A sum would have no gradient through a normalisation.
        activation.backward(torch.randn_like(activation))
        assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
        assert (source.grad is not None) == source.is_floating_point()
        activation = activation.detach()


def test_unknown_name_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^model\.name=lstm: allowed for images are mlp, cnn, [^\n]*resnet32, custom$"
    ):
        build(ModelConfig(name="lstm"), (1, 8, 8), 10, seed=1)


def test_samples_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.name=cnn: allowed for sequences are transformer, gpt, custom$"):
        build(CNNConfig(), (16,), 10, seed=1)
    with pytest.raises(
        ValueError, match=r"^model\.name=transformer: allowed for images are mlp, [^\n]*resnet32, custom$"
    ):
        build(TransformerConfig(), (1, 8, 8), 10, seed=1)


def test_a_layer_is_a_function_of_config_seed_and_index(case: tuple[ModelConfig, tuple[int, ...]]) -> None:
    """Made alone it has the same values, and all others are names and shapes."""
    config, shape = case
    whole = build(config, shape, 10, seed=3)
    for number in range(0, len(whole), 2):
        network = build(config, shape, 10, seed=3, layers={number})
        assert_same(network[number], whole[number])
        assert {name: value.shape for name, value in network.state_dict().items()} == {
            name: value.shape for name, value in whole.state_dict().items()
        }
        others = [value for i, layer in enumerate(network) if i != number for value in layer.state_dict().values()]
        assert all(value.is_meta for value in others) or isinstance(config, CustomConfig)


def test_layers_alike_have_values_of_their_own() -> None:
    network = build(MLPConfig(hidden=3, width=16), (1, 4, 4), 10, seed=1)
    weights = [layer.state_dict()["0.weight"] for layer in network[1:3]]
    assert weights[0].shape == weights[1].shape
    assert not torch.equal(*weights)


def test_an_outline_has_the_statistics_of_the_network(case: tuple[ModelConfig, tuple[int, ...]]) -> None:
    config, shape = case
    example = samples(2, shape)
    whole, outline = build(config, shape, 10, seed=1), build(config, shape, 10, seed=1, layers=())
    assert profile_layers(outline, example) == profile_layers(whole, example)
