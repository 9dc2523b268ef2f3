from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from counterflow.metrics.provenance import digest, fingerprint


def block(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = nn.BatchNorm1d(4)
        norm.num_batches_tracked.fill_(2**60 + 1)  # which no float holds
        return nn.Sequential(nn.Linear(3, 4), norm, nn.Sequential(nn.Linear(4, 2, bias=False)))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def flip(tensor: Tensor, bit: int) -> None:
    """Change one bit of a tensor where it is."""
    view = tensor.detach().reshape(-1).view(torch.uint8)
    view[bit // 8] ^= 1 << bit % 8


def test_equal_bits_have_equal_digests() -> None:
    assert digest(block()) == digest(block())
    assert len(digest(block())) == 32
    assert digest(block()) != digest(block(seed=1))


@pytest.mark.parametrize("name", list(tensors(block())))
def test_every_bit_of_every_parameter_and_buffer_counts(name: str) -> None:
    module = block()
    tensor = tensors(module)[name]
    expected = digest(block())
    for bit in range(8 * tensor.numel() * tensor.element_size()):
        flip(tensor, bit)
        assert digest(module) != expected, f"bit {bit}"
        flip(tensor, bit)
    assert digest(module) == expected


def test_values_that_compare_equal_but_differ_in_bits_differ() -> None:
    zeros, negative = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in zeros.parameters():
            parameter.fill_(0.0)
        for parameter in negative.parameters():
            parameter.fill_(-0.0)
    assert digest(zeros) != digest(negative)


class Holder(nn.Module):
    def __init__(self, name: str, value: Tensor, kind: str = "buffer", persistent: bool = True) -> None:
        super().__init__()
        if kind == "buffer":
            self.register_buffer(name, value, persistent=persistent)
        else:
            self.register_parameter(name, nn.Parameter(value))


def test_name_type_and_shape_count() -> None:
    """The same 24 bytes every time."""
    value = torch.arange(6, dtype=torch.float32)
    holders = [
        Holder("a", value),
        Holder("b", value),
        Holder("a", value.view(torch.int32)),
        Holder("a", value.view(2, 3)),
        Holder("a", value.view(3, 2)),
        nn.Sequential(Holder("a", value)),
    ]
    assert len({digest(holder) for holder in holders}) == len(holders)
    assert digest(Holder("a", value)) == digest(Holder("a", value.clone()))


def test_where_one_tensor_ends_and_the_next_begins_counts() -> None:
    value = torch.arange(6, dtype=torch.float32)
    pairs = []
    for cut in (2, 3):
        module = nn.Module()
        module.register_buffer("a", value[:cut])
        module.register_buffer("b", value[cut:])
        pairs.append(digest(module))
    assert pairs[0] != pairs[1]


def test_memory_layout_does_not_count() -> None:
    weight = torch.randn(4, 3, 2, 2)
    assert digest(Holder("a", weight)) == digest(Holder("a", weight.to(memory_format=torch.channels_last)))
    assert digest(Holder("a", weight[..., 0])) == digest(Holder("a", weight[..., 0].contiguous()))


def test_gradients_and_the_mode_do_not_count() -> None:
    module, expected = block(), digest(block())
    module.eval()
    module[0].weight.grad = torch.ones(4, 3)
    assert digest(module) == expected


def test_the_order_of_blocks_counts() -> None:
    digests = [digest(block(seed)) for seed in range(4)]
    orders = list(permutations(digests))
    assert len({fingerprint(order) for order in orders}) == len(orders)


def test_it_is_a_function_of_the_blocks_alone_however_they_came() -> None:
    digests = [digest(block(seed)) for seed in range(4)]
    expected = fingerprint(digests)
    assert len(expected) == 64
    assert int(expected, 16) >= 0
    for ranks in ([4], [2, 2], [1, 3], [1, 1, 1, 1]):
        rest = iter(digests)
        gathered = [[next(rest) for _ in range(count)] for count in ranks]
        assert fingerprint(d for rank in gathered for d in rank) == expected
    assert len({fingerprint(digests[:count]) for count in range(5)}) == 5
