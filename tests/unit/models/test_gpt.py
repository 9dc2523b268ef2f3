"""The decoder: causality, rotary positions, and a loop written from the equations."""

import math

import pytest
import torch
from torch import Tensor

from counterflow.config import HeadConfig
from counterflow.config.model import GPTConfig
from counterflow.models import build
from counterflow.models.gpt import Cache, DecoderLayer, rotated
from counterflow.models.head import Head


@pytest.fixture
def layer() -> DecoderLayer:
    torch.manual_seed(0)
    return DecoderLayer(16, 2, 24).eval()


def test_no_token_sees_the_future(layer: DecoderLayer) -> None:
    """Through the network, and through the private layers of a head."""
    network = build(GPTConfig(layers=2, width=16, heads=2, hidden=24), (9,), 7, seed=1).eval()
    head = Head((9, 16), HeadConfig(layers=2)).eval()
    tokens = torch.randint(7, (3, 9), generator=torch.Generator().manual_seed(1))
    for position in range(9):
        other = tokens.clone()
        other[:, position:] = (other[:, position:] + 1) % 7
        for module in (network, torch.nn.Sequential(*network[:2], head)):
            here, there = module(tokens), module(other)
            assert torch.equal(here[:, :position], there[:, :position])
            assert not torch.allclose(here[:, position], there[:, position])


def test_attention_depends_on_distances_alone() -> None:
    """``<R(m) q, R(n) k>`` is a function of ``m - n``, and of that it is not constant."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8)

    def score(m: int, n: int) -> float:
        return float((rotated(query, m) * rotated(key, n)).sum())

    assert score(3, 1) == pytest.approx(score(13, 11), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
    assert score(0, 0) == pytest.approx(float((query * key).sum()), abs=1e-6)


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def test_a_layer_by_hand(layer: DecoderLayer) -> None:
    """Token by token, from the equations, with complex numbers for the rotation."""
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(2))
    inputs, output = layer.attention.inputs.weight, layer.attention.output.weight
    wavelengths = torch.tensor([10000 ** (-i / 4) for i in range(4)])
    expected = []
    for t in range(5):
        mixed = []
        for head in range(2):
            rows = [slice(part * 16 + head * 8, part * 16 + head * 8 + 8) for part in range(3)]
            q, k, v = (norm(x[0]) @ inputs[part].T for part in rows)
            turned = [
                torch.complex(y[:, :4], y[:, 4:]) * torch.polar(torch.ones(4), torch.arange(5)[:, None] * wavelengths)
                for y in (q, k)
            ]
            scores = (turned[0][t] * turned[1][: t + 1].conj()).sum(-1).real / math.sqrt(8)
            mixed.append(scores.softmax(0) @ v[: t + 1])
        h = x[0, t] + output @ torch.cat(mixed)
        gate, value = (layer.feedforward.inputs.weight @ norm(h)).chunk(2)
        expected.append(h + layer.feedforward.output.weight @ (gate * gate.sigmoid() * value))
    torch.testing.assert_close(layer(x)[0], torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_cache_gives_what_the_whole_sequence_gives(layer: DecoderLayer) -> None:
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(3))
    whole = layer(x)
    part, cache = layer.extended(x[:, :4], None)
    parts = [part]
    for t in range(4, 7):
        part, cache = layer.extended(x[:, t : t + 1], cache)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert isinstance(cache, Cache)
    assert (cache.tokens, cache.keys.shape) == (7, (2, 2, 7, 8))


def test_layers_and_sizes() -> None:
    network = build(GPTConfig(), (128,), 256, seed=1)
    assert len(network) == 10, "the embedding, eight layers and the output: each one is a cut point"
    assert sum(p.numel() for p in network.parameters()) == 1_378_432
    assert float(network[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    small = network[3].attention.output.weight.std() / network[3].attention.inputs.weight.std()
    assert float(small.detach()) == pytest.approx(1 / 4, rel=0.05), "1 / sqrt(2 * 8 layers)"


def test_weights_do_not_depend_on_the_length() -> None:
    short, long = (build(GPTConfig(layers=1), (length,), 256, seed=3) for length in (8, 64))
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), long.parameters(), strict=True))


def test_private_layers_are_of_sequences_alone() -> None:
    config = HeadConfig(layers=2)
    assert [len(Head(shape, config).layers) for shape in ((9, 16), (16,), (4, 5, 5))] == [2, 0, 0]
    assert Head((9, 16), config)(torch.randn(3, 9, 16)).shape == (3, 9, 16)


@pytest.mark.parametrize("width", [12, 20, 64, 96])
def test_any_even_width_has_private_layers(width: int) -> None:
    assert Head((4, width), HeadConfig(layers=1))(torch.randn(2, 4, width)).shape == (2, 4, width)


def test_heads_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^algorithm.head.layers=1: needs outputs of even width, not 7$"):
        Head((4, 7), HeadConfig(layers=1))
    with pytest.raises(ValueError, match=r"^model.heads=3: must divide half of model.width=128$"):
        GPTConfig(heads=3)
