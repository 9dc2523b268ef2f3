import pytest
import torch
import torch.nn.functional as F
from torch import nn

from counterflow.config import TransformerConfig
from counterflow.models import build
from counterflow.models.partition import (
    balance,
    block_sizes,
    layer_costs,
    layer_times,
    profile_layers,
    split_network,
)

SMALL = TransformerConfig(layers=3, width=8, hidden=12)


def test_layers_are_embedding_encoders_output() -> None:
    network = build(SMALL, (5,), 7, seed=0)
    assert [type(layer).__name__ for layer in network] == [
        "Embedding",
        *["TransformerEncoderLayer"] * 3,
        "Sequential",
    ]
    tokens = torch.randint(7, (2, 5))
    layers = profile_layers(network, tokens)
    assert [layer.shape for layer in layers] == [*[(5, 8)] * 4, (5, 7)]
    encoder = 4 * (8 * 8 + 8) + (8 * 12 + 12) + (12 * 8 + 8) + 2 * 2 * 8
    assert layer_costs(layers, "parameters") == [7 * 8 + 5 * 8, *[encoder] * 3, 2 * 8 + 8 * 7 + 7]


def test_embedding_adds_what_and_where() -> None:
    embedding = build(SMALL, (3,), 7, seed=0)[0]
    (output,) = embedding(torch.tensor([[4, 0, 4]]))
    words, places = embedding.tokens.weight, embedding.positions
    assert torch.equal(output, torch.stack([words[4] + places[0], words[0] + places[1], words[4] + places[2]]))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_by_hand(heads: int, training: bool) -> None:
    layer = build(TransformerConfig(heads=heads, width=8, hidden=12), (5,), 7, seed=0).train(training)[1]
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        attention = layer.self_attn
        projected = F.layer_norm(x, (8,)) @ attention.in_proj_weight.T
        q, k, v = (p.view(2, 5, heads, 8 // heads).transpose(1, 2) for p in projected.chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / (8 // heads) ** 0.5).softmax(-1)
        h = x + attention.out_proj((weights @ v).transpose(1, 2).reshape(2, 5, 8))
        expected = h + layer.linear2(layer.linear1(F.layer_norm(h, (8,))).clamp(min=0))
        torch.testing.assert_close(layer(x), expected)


def test_every_position_sees_all_others() -> None:
    network = build(SMALL, (5,), 7, seed=0).eval()
    tokens = torch.randint(6, (1, 5))
    other = tokens.clone()
    other[0, 4] = 6
    assert (network(tokens) != network(other)).any(-1).all()


@pytest.mark.parametrize("heads", [1, 2])
def test_flops_are_counted_by_hand(heads: int) -> None:
    network = build(TransformerConfig(layers=2, heads=heads, width=8, hidden=12), (5,), 7, seed=0)
    projections, attention, hidden = 2 * 5 * 8 * 8 * 4, 2 * 5 * 5 * 8 * 2, 2 * 5 * 8 * 12 * 2
    encoder = projections + attention + hidden
    layers = profile_layers(network, torch.randint(7, (4, 5)))
    assert layer_costs(layers, "flops") == [1, encoder, encoder, 2 * 5 * 8 * 7]


@pytest.mark.parametrize("cut", ["parameters", "flops", "profile"])
def test_every_cut_works_on_tokens(cut: str) -> None:
    network = build(SMALL, (5,), 7, seed=0)
    tokens = torch.randint(7, (4, 5))
    layers, times = profile_layers(network, tokens), [sum(pair) for pair in layer_times(network, tokens)]
    for blocks in range(1, 6):
        sizes = balance(times, blocks) if cut == "profile" else block_sizes(layers, blocks, cut)
        assert sum(sizes) == 5
        assert len(split_network(network, sizes)) == blocks


def test_layers_inside_may_be_replaced_in_evaluation_too() -> None:
    """Feedback alignment does so."""
    network = build(TransformerConfig(heads=2), (5,), 7, seed=0)
    network[1].linear1, network[1].linear2 = nn.Sequential(network[1].linear1), nn.Sequential(network[1].linear2)
    for training in (True, False):
        with torch.no_grad():
            assert network.train(training)(torch.randint(7, (2, 5))).shape == (2, 5, 7)


def test_dropout() -> None:
    network = build(TransformerConfig(dropout=0.3), (5,), 7, seed=0)
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.3}
