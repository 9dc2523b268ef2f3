"""Feedback alignment (Lillicrap et al., 2016) against its definition, and what it is known for."""

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.end_to_end import FeedbackAligned, FeedbackAlignment
from counterflow.config import CNNConfig, MLPConfig, ResNetConfig
from counterflow.models import build
from counterflow.trainer.job_builder import load_job
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL

SEED = 3


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 4))


def convolutional() -> nn.Sequential:
    """Without activations, so that nothing but weights stands between a loss and a layer."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(6, 6, (3, 1), stride=(2, 1), padding=(2, 0), groups=3, dilation=(2, 1)),
        nn.Flatten(),
        nn.Linear(6 * 2 * 4, 4),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "linear": (linear, (5,)),
    "convolutions with stride, padding, groups and dilation": (convolutional, (2, 8, 8)),
}


def pair(name: str) -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    """A network in float64, the same aligned, and a batch of inputs."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = make().double()
        x = torch.randn(3, *shape, dtype=torch.float64)
    aligned = copy.deepcopy(network)
    FeedbackAlignment().convert(aligned, SEED)
    return network, aligned, x


def aligned_layers(network: nn.Module) -> list[FeedbackAligned]:
    return [module for module in network.modules() if isinstance(module, FeedbackAligned)]


def first_gradient(network: nn.Sequential, x: Tensor) -> Tensor:
    """Gradient of a loss that is linear in the output, so that its gradient there does not depend on the weights."""
    output = network(x)
    direction = torch.linspace(-1.0, 2.0, output.numel(), dtype=output.dtype).view_as(output)
    first = next(network.parameters())
    (gradient,) = torch.autograd.grad((output * direction).sum(), first)
    return gradient


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_the_first_layer_use_the_feedback_weights_and_not_the_weights_above(name: str) -> None:
    network, aligned, x = pair(name)
    layers = aligned_layers(aligned)
    before = first_gradient(aligned, x)
    for layer in layers[1:]:
        was = layer.feedback.clone()
        layer.feedback.mul_(1.5).add_(0.1)
        assert not torch.allclose(first_gradient(aligned, x), before), "a feedback weight above has no part in it"
        layer.feedback.copy_(was)
    for layer in layers[1:]:
        layer.layer.weight.data.mul_(1.5).add_(0.1)
    assert torch.equal(first_gradient(aligned, x), before)

    # The true gradient is the other way round: otherwise this test would see nothing.
    before = first_gradient(network, x)
    for layer in [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)][1:]:
        was = layer.weight.detach().clone()
        layer.weight.data.mul_(1.5).add_(0.1)
        assert not torch.allclose(first_gradient(network, x), before)
        layer.weight.data.copy_(was)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_layers_own_feedback_has_no_part_in_anything(name: str) -> None:
    _, aligned, x = pair(name)
    before = first_gradient(aligned, x), aligned(x)
    aligned_layers(aligned)[0].feedback.normal_()
    assert torch.equal(first_gradient(aligned, x), before[0])
    assert torch.equal(aligned(x), before[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_a_network_with_the_feedback_weights_above(name: str) -> None:
    """Without activations the first layer's gradient is the true one of a network that has them as its weights."""
    network, aligned, x = pair(name)
    weighted = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer, other in list(zip(weighted, aligned_layers(aligned), strict=True))[1:]:
        layer.weight.data.copy_(other.feedback)
    torch.testing.assert_close(first_gradient(aligned, x), first_gradient(network, x))


def test_gradients_by_hand() -> None:
    """``dW1 = (B2' (B3' e * relu'(z2)) * relu'(z1)) x'`` and so on up; the top's is the true one."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    FeedbackAlignment().convert(network, SEED)
    one, two, three = aligned_layers(network)
    x, y = torch.randn(8, 5, dtype=torch.float64), torch.randint(4, (8,))
    F.cross_entropy(network(x), y).backward()

    with torch.no_grad():
        z1 = x @ one.layer.weight.T + one.layer.bias
        z2 = z1.relu() @ two.layer.weight.T + two.layer.bias
        z3 = z2.relu() @ three.layer.weight.T + three.layer.bias
        e3 = (z3.softmax(1) - torch.eye(4)[y]) / 8
        e2 = (e3 @ three.feedback) * (z2 > 0)
        e1 = (e2 @ two.feedback) * (z1 > 0)
    for layer, error, below in ((one, e1, x), (two, e2, z1.relu()), (three, e3, z2.relu())):
        torch.testing.assert_close(layer.layer.weight.grad, error.T @ below)
        torch.testing.assert_close(layer.layer.bias.grad, error.sum(0))


def test_the_input_of_a_network_receives_its_gradient_through_feedback_too() -> None:
    """A block of a pipeline starts in the middle of a network."""
    layer = nn.Linear(5, 3).double()
    aligned = FeedbackAligned(layer, torch.randn(3, 5, dtype=torch.float64))
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    error = torch.randn(4, 3, dtype=torch.float64)
    aligned(x).backward(error)
    torch.testing.assert_close(x.grad, error @ aligned.feedback)


@pytest.mark.parametrize("config", [MLPConfig(width=16), CNNConfig(channels=[4, 6, 6], strides=[1, 2, 2])])
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_the_output_is_that_of_the_network_to_the_bit(config: MLPConfig | CNNConfig, needs_gradient: bool) -> None:
    network = build(config, (1, 8, 8), 10, SEED)
    aligned = copy.deepcopy(network)
    FeedbackAlignment().convert(aligned, SEED)
    x = torch.randn(4, 1, 8, 8)
    expected = network(x)
    assert torch.equal(aligned(x.requires_grad_(needs_gradient)), expected)
    with torch.no_grad():
        assert torch.equal(aligned.eval()(x), network.eval()(x))


@pytest.mark.parametrize("config", [MLPConfig(width=16), CNNConfig(channels=[4, 6, 6], strides=[1, 2, 2])])
def test_the_last_layer_has_its_true_gradient_and_the_others_another_one(config: MLPConfig | CNNConfig) -> None:
    network = build(config, (1, 8, 8), 10, SEED)
    aligned = copy.deepcopy(network)
    FeedbackAlignment().convert(aligned, SEED)
    x, y = torch.randn(4, 1, 8, 8), torch.randint(10, (4,))
    for net in (network, aligned):
        F.cross_entropy(net(x), y).backward()
    true = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    *lower, last = zip(true, aligned_layers(aligned), strict=True)
    assert torch.equal(last[0].weight.grad, last[1].layer.weight.grad)  # type: ignore[arg-type]
    for layer, other in lower:
        assert not torch.allclose(layer.weight.grad, other.layer.weight.grad)  # type: ignore[arg-type]


def test_every_convolution_and_linear_layer_is_aligned_once() -> None:
    network = build(CNNConfig(channels=[4, 6, 6], strides=[1, 2, 2]), (1, 8, 8), 10, SEED)
    weights = {id(m.weight) for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    FeedbackAlignment().convert(network, SEED)
    assert {id(layer.layer.weight) for layer in aligned_layers(network)} == weights
    assert len(aligned_layers(network)) == len(weights) == 4
    FeedbackAlignment().convert(network, SEED)  # again: nothing is left to align
    assert len(aligned_layers(network)) == 4


def test_feedback_weights_are_not_trained_and_travel_with_the_network() -> None:
    _, aligned, _ = pair("linear")
    parameters = {id(p) for p in aligned.parameters()}
    before = [layer.feedback.clone() for layer in aligned_layers(aligned)]
    optimizer = torch.optim.SGD(aligned.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        aligned(torch.randn(3, 5, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    for layer, feedback in zip(aligned_layers(aligned), before, strict=True):
        assert id(layer.feedback) not in parameters
        assert not layer.feedback.requires_grad
        assert torch.equal(layer.feedback, feedback)
    assert [name for name in aligned.state_dict() if name.endswith("feedback")]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_original_state_is_that_of_the_network_without_feedback(name: str) -> None:
    network, aligned, _ = pair(name)
    state = FeedbackAlignment().original_state(aligned.state_dict())
    assert list(state) == list(network.state_dict())
    torch.testing.assert_close(state, dict(network.state_dict()), rtol=0, atol=0)


class Named(nn.Module):
    """Names of the user's own that look like those of feedback alignment."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("feedback", torch.zeros(3))
        self.my_feedback = nn.Parameter(torch.zeros(3))
        self.layers = nn.Sequential(nn.BatchNorm1d(3), nn.MultiheadAttention(3, 1))


def test_names_of_the_users_own_stay() -> None:
    network = nn.Sequential(Named(), nn.Flatten(), nn.ModuleDict({"feedback": nn.Linear(2, 2)}))
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    FeedbackAlignment().convert(network, SEED)
    state = FeedbackAlignment().original_state(network.state_dict())
    assert list(state) == list(expected)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    plain = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)).state_dict()
    assert FeedbackAlignment().original_state(plain) == plain


def feedbacks(seed: int, global_seed: int = 0) -> list[Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = linear()
        torch.manual_seed(global_seed)
        FeedbackAlignment().convert(network, seed)
    return [layer.feedback for layer in aligned_layers(network)]


def test_feedback_weights_are_a_function_of_the_seed_and_the_network() -> None:
    for ours, same, other in zip(feedbacks(1), feedbacks(1, global_seed=9), feedbacks(2), strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, other)
    square = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    FeedbackAlignment().convert(square, 1)
    one, two = aligned_layers(square)
    assert not torch.equal(one.feedback, two.feedback)


def he_normal(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def shifted(weight: Tensor) -> None:
    nn.init.normal_(weight, mean=0.5, std=0.2)


def kurtosis(x: Tensor) -> Tensor:
    centred = x - x.mean()
    return (centred**4).mean() / (centred**2).mean() ** 2


@pytest.mark.parametrize("init", [None, he_normal, shifted])
def test_feedback_weights_are_distributed_as_a_layers_own_are(init: Callable[[Tensor], object] | None) -> None:
    """Mean, deviation, extremes and kurtosis, whatever initialised the layer; and no correlation with its weights."""
    for layer in (nn.Linear(100, 300), nn.Conv2d(40, 50, 3, bias=False)):
        if init is not None:
            init(layer.weight)
        network = nn.Sequential(layer)
        FeedbackAlignment().convert(network, SEED)
        (aligned,) = aligned_layers(network)
        assert aligned.feedback.shape == layer.weight.shape
        for statistic in (torch.mean, torch.std, torch.max, torch.min, kurtosis):
            assert statistic(aligned.feedback).item() == pytest.approx(statistic(layer.weight).item(), rel=1e-3)
        correlation = torch.corrcoef(torch.stack([aligned.feedback.flatten(), layer.weight.flatten()]))[0, 1]
        assert abs(correlation.item()) < 0.05


def test_feedback_weights_of_a_residual_network_have_the_deviation_of_its_layers() -> None:
    """Its convolutions start with He et al.'s deviation, 2.45 times that of torch's layers."""
    network = build(ResNetConfig(width=16), (3, 16, 16), 10, SEED)
    FeedbackAlignment().convert(network, SEED)
    layers = aligned_layers(network)
    ratios = [(layer.feedback.std() / layer.layer.weight.std()).item() for layer in layers]
    assert ratios == pytest.approx([1.0] * len(layers), rel=1e-3)
    square = next(x.layer for x in layers if isinstance(x.layer, nn.Conv2d) and x.layer.weight.shape[:2] == (64, 64))
    assert square.weight.std().item() * (3 * 64 * 9) ** 0.5 == pytest.approx(6**0.5, rel=0.02)


def test_a_layer_that_starts_at_zero_passes_errors_down() -> None:
    layer = nn.Linear(100, 300)
    nn.init.zeros_(layer.weight)
    network = nn.Sequential(layer)
    FeedbackAlignment().convert(network, SEED)
    assert aligned_layers(network)[0].feedback.std().item() == pytest.approx(300**-0.5, rel=0.03)


def angle(a: list[Tensor], b: list[Tensor]) -> float:
    """Degrees between two gradients, each of several tensors."""
    x, y = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (a, b))
    return math.degrees(math.acos(max(-1.0, min(1.0, float(x @ y / (x.norm() * y.norm()))))))


def test_the_angle_to_the_true_gradient_falls_while_a_network_trains() -> None:
    """It starts near 90 degrees, as random weights know nothing; the weights come to agree with them.

    Of the gradients of both hidden layers, at the weights of the moment; the output layer's are the true ones.
    """
    job = load_job(configured(*SMALL, "algorithm=fa"))
    torch.manual_seed(1)
    sizes = (64, 64, 64)
    hidden = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes)]
    true = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))
    network = copy.deepcopy(true)
    FeedbackAlignment().convert(network, SEED)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    angles = []
    for n in range(300):
        x, y = job.batches.inputs(n), job.batches.labels(n)
        weights = list(network.parameters())
        with torch.no_grad():
            for parameter, weight in zip(true.parameters(), weights, strict=True):
                parameter.copy_(weight)
        below = list(true.parameters())[:-2]
        gradients = torch.autograd.grad(F.cross_entropy(true(x), y), below)
        F.cross_entropy(network(x), y).backward()
        angles.append(angle([w.grad for w in weights[:-2] if w.grad is not None], list(gradients)))
        optimizer.step()
        optimizer.zero_grad()
    start, early, middle, late = (sum(angles[a:b]) / (b - a) for a, b in ((0, 3), (0, 50), (100, 150), (250, 300)))
    assert 80 < start < 100
    assert 90 > early > middle + 5 > late + 10
