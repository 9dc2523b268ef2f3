"""Number formats and memory layouts: they change the result, and placement does not."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from counterflow.algorithms import Task
from counterflow.cli.hydra_app import load_config
from counterflow.engine.quantization import dequantize, quantize
from counterflow.engine.runtime import Runtime, has_bf16_units
from counterflow.engine.stage_blocks import rounded
from counterflow.message import MessageKind
from counterflow.trainer.job_builder import load_job
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, summary_of
from tests.helpers.systems import specs

CPU = torch.device("cpu")
CNN = ("model=cnn", "model.channels=[4,6,6,8,8]", "model.strides=[1,2,1,1,1]")
HEADS = ("algorithm.head.convolutions=1", "algorithm.head.width=6", "train.steps=6")
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(pool: Pool) -> Run:
    """The summary of a run, which several tests may look at."""
    return cache(lambda ranks, *overrides: summary_of(pool, ranks, *overrides, "train.evaluate_every=0"))


@pytest.mark.parametrize(
    "options",
    [
        ("engine.precision=bf16",),
        ("engine.channels_last=true",),
        ("engine.wire=bf16", "train.accumulate=2"),
        ("engine.wire=int8",),
        ("engine.wire=int8", "engine.channels_last=true", "train.accumulate=2"),
    ],
    ids=["bf16", "nhwc", "wire", "int8", "int8 nhwc"],
)
@pytest.mark.parametrize("algorithm", ["bll", "al", "predsim"])
def test_processes_change_nothing(run: Run, algorithm: str, options: tuple[str, ...]) -> None:
    overrides = (*CNN, *HEADS, f"algorithm={algorithm}")
    alone = run(1, *overrides, *options)
    assert run(3, *overrides, *options)["fingerprint"] == alone["fingerprint"]
    assert alone["fingerprint"] != run(1, *overrides)["fingerprint"]


@pytest.mark.parametrize("wire", ["bf16", "int8"])
@pytest.mark.parametrize("schedule", ["naive", "gpipe"])
def test_rounded_gradients_on_several_processes(run: Run, schedule: str, wire: str) -> None:
    """``naive`` with the same bits, a pipeline up to the rounding of sums; both with smaller messages."""
    options = (*CNN, "algorithm=bp", "blocks=2", f"schedule={schedule}", "train.microbatches=2", "train.steps=6")
    rounded = (f"engine.wire={wire}",)
    alone, together, exact = (run(ranks, *options, *more) for ranks, more in ((1, rounded), (2, rounded), (1, ())))
    assert alone["fingerprint"] != exact["fingerprint"]
    assert together["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.01)
    if schedule == "naive":
        assert together["fingerprint"] == alone["fingerprint"]


def test_messages_are_rounded_half_to_even() -> None:
    halfway = 1 + 2.0**-8, 1 + 3 * 2.0**-8  # between two neighbours in bf16, 2^-7 apart
    numbers, labels = torch.tensor(halfway), torch.tensor([300])
    runtime = Runtime(CPU, wire="bf16")
    announced = ((2,), torch.float32), ((1,), torch.int16)
    message = runtime.pack(MessageKind.TARGET, (numbers, labels), announced)
    assert specs(message) == runtime.packed(MessageKind.TARGET, announced)
    assert [tensor.dtype for tensor in message] == [torch.bfloat16, torch.int16]
    found, same = runtime.unpack(message)
    assert found.tolist() == [1.0, 1 + 2.0**-6]
    assert torch.equal(same, labels)
    x = torch.ones(2, requires_grad=True)
    rounded(x, "bf16").backward(numbers)
    assert x.grad is not None
    assert x.grad.tolist() == found.tolist()


@pytest.mark.parametrize("channels_last", [False, True])
def test_int8_is_for_activations_and_gradients(channels_last: bool) -> None:
    """Code books and predictions are bfloat16, and so are rows that are too short for a scale."""
    runtime = Runtime(CPU, wire="int8", channels_last=channels_last)
    tensors = torch.randn(2, 3, 8, 8), torch.randn(2, 16), torch.randn(2, 5), torch.tensor([True, False])
    for kind in MessageKind:
        message = runtime.pack(kind, tensors, specs(tensors))
        assert specs(message) == runtime.packed(kind, specs(tensors))
        assert all(tensor.is_contiguous() for tensor in message)
        *found, flags = runtime.unpack(message)
        assert torch.equal(flags, tensors[-1])
        rounded = [tensor.bfloat16().float() for tensor in tensors[:-1]]
        if kind in (MessageKind.ACTIVATION, MessageKind.TEST, MessageKind.GRADIENT):
            rounded[:2] = [dequantize(*quantize(tensor)) for tensor in tensors[:2]]
            assert [tensor.dtype for tensor in message[:4]] == [torch.int8, torch.float32] * 2
        assert all(torch.equal(a, b) for a, b in zip(found, rounded, strict=True))
        assert found[0].is_contiguous(memory_format=torch.channels_last) == channels_last


def test_integers_travel_in_the_announced_type_and_arrive_as_int64() -> None:
    runtime = Runtime(CPU, wire="int8")
    types = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64
    tensors = tuple(torch.arange(3) for _ in types)
    message = runtime.pack(MessageKind.TARGET, tensors, tuple(((3,), dtype) for dtype in types))
    assert [tensor.dtype for tensor in message] == [torch.uint8, torch.int16, torch.int16, torch.int32, torch.int64]
    assert all(torch.equal(tensor, torch.arange(3)) for tensor in runtime.unpack(message))


@pytest.mark.parametrize("classes", [2, 256, 257, 1 << 15, (1 << 15) + 1, 10**6])
def test_labels_travel_in_the_smallest_type_that_holds_them(classes: int) -> None:
    ((shape, dtype),) = Task((4,), classes, (7,)).labels(2)
    assert shape == (2, 7)
    assert torch.iinfo(dtype).max >= classes - 1
    smaller = [torch.uint8, torch.int16, torch.int32][: [torch.uint8, torch.int16, torch.int32].index(dtype)]
    assert all(torch.iinfo(other).max < classes - 1 for other in smaller)


def test_a_message_with_another_number_of_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a message of 1 tensors where 2 were agreed$"):
        Runtime(CPU).pack(MessageKind.ACTIVATION, (torch.zeros(2),), (((2,), torch.float32),) * 2)
    with pytest.raises(ValueError, match=r"^a tensor of torch.float32 where torch.uint8 was agreed$"):
        Runtime(CPU).pack(MessageKind.TARGET, (torch.zeros(2),), (((2,), torch.uint8),))


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, ("algorithm=bll",)),
        (3, ("algorithm=predsim", "algorithm.similarity=layer")),
        (1, ("algorithm=al",)),
        (2, ("algorithm=bp", "schedule=gpipe", "train.microbatches=2", "blocks=2")),
        (1, ("algorithm=bp",)),
    ],
)
def test_recomputed_layers_have_the_same_bits(run: Run, ranks: int, options: tuple[str, ...]) -> None:
    """Batch norm's averages move once, and dropout drops the same."""
    overrides = (*CNN, "train.steps=6", "model.norm=batch", "model.dropout=0.2", *options)
    plain = run(ranks, *overrides)
    assert run(ranks, *overrides, "engine.recompute=true")["fingerprint"] == plain["fingerprint"]


def test_recomputed_layers_keep_their_inputs_alone() -> None:
    """Tensors that autograd keeps: without, also those inside of the layers."""
    kept = []
    for again in (False, True):
        network = nn.Sequential(*(nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4)) for _ in range(3)))
        Runtime(CPU, recompute=again).prepare_module(network, [network])
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(8, 4))
        kept.append(8 * 64 in sizes)
    assert kept == [True, False]


@pytest.mark.parametrize("options", [("engine.precision=bf16",), ("engine.channels_last=true",)], ids=["bf16", "nhwc"])
@pytest.mark.parametrize("schedule", ["gpipe", "naive"])
def test_end_to_end_references_learn_with_them(run: Run, schedule: str, options: tuple[str, ...]) -> None:
    length = ("train.steps=120", "optimizer.lr=1e-2", "train.microbatches=2")
    overrides = ("algorithm=bp", f"schedule={schedule}", "blocks=2", *length)
    plain = run(2, *CNN, *overrides)["test_accuracy"]
    assert run(2, *CNN, *overrides, *options)["test_accuracy"] == pytest.approx(plain, abs=0.1)
    assert plain > 0.6


def test_bf16_is_what_the_layers_compute_in() -> None:
    with Runtime(CPU, bf16=True).autocast():
        assert nn.Linear(3, 2)(torch.randn(4, 3)).dtype == torch.bfloat16
    with Runtime(CPU).autocast():
        assert nn.Linear(3, 2)(torch.randn(4, 3)).dtype == torch.float32


def test_messages_are_contiguous_float32_and_come_back_as_they_went() -> None:
    images = torch.randn(2, 3, 4, 5).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    codes, labels = torch.randn(5, 7).T, torch.arange(2)
    for channels_last in (False, True):
        runtime = Runtime(CPU, channels_last=channels_last)
        announced = specs((images, codes, labels))
        packed = runtime.pack(MessageKind.TARGET, (images, codes, labels), announced)
        assert all(tensor.is_contiguous() for tensor in packed)
        assert [tensor.dtype for tensor in packed] == [torch.float32, torch.float32, torch.int64]
        assert specs(packed) == runtime.packed(MessageKind.TARGET, announced)
        found = runtime.unpack(packed)
        assert torch.equal(found[0], images.float())
        assert found[0].is_contiguous(memory_format=torch.channels_last) == channels_last
        assert torch.equal(found[1], codes)
        assert torch.equal(found[2], labels)


def test_auto_is_bf16_where_the_processor_has_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for unit, has in ((None, False), ("avx512_f", False), ("amx_bf16", True), ("avx512_bf16", True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda unit=unit: {unit: True})
        assert has_bf16_units(CPU) == has
        for precision, bf16 in (("auto", has), ("bf16", True), ("fp32", False)):
            job = load_job(load_config([*SMALL, "device=cpu", f"engine.precision={precision}"]))
            assert job.runtime.bf16 == bf16
        assert not load_job(load_config([*SMALL, "device=cpu"])).runtime.bf16


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["bll", "bp"])
def test_compiled_blocks_learn_the_same(pool: Pool, algorithm: str) -> None:
    overrides = (f"algorithm={algorithm}", "schedule=auto", "train.steps=60")
    plain, compiled = (summary_of(pool, 1, *overrides, f"engine.compile={on}") for on in ("false", "true"))
    assert compiled["test_accuracy"] == pytest.approx(plain["test_accuracy"], abs=0.03)
