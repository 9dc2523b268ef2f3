"""Branches of the engine for a GPU, with the calls to torch.cuda that they make recorded in place of made."""

import math
from typing import Any

import pytest
import torch

from counterflow.engine import runtime
from counterflow.engine.run_context import RunContext
from counterflow.engine.runtime import Runtime, has_bf16_units
from counterflow.metrics.provenance import hardware
from counterflow.models import partition
from counterflow.seeding import derive_seed

GPU = torch.device("cuda", 1)


class Callback:
    """Reads the metrics of every tenth batch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def should_log(self, n: int) -> bool:
        return n % 10 == 0

    def on_step(self, block: int, n: int, metrics: Any) -> None:
        self.seen.append(n)


class Unread:
    """A loss on a GPU: to look at it is to wait for it."""

    def __init__(self, value: float = math.nan) -> None:
        self.value, self.looks = value, 0

    def __float__(self) -> float:
        self.looks += 1
        return self.value


def context_of(callback: Callback) -> RunContext:
    return RunContext(None, callback, None)  # type: ignore[arg-type]


def test_a_loss_on_a_gpu_is_looked_at_only_where_it_is_read() -> None:
    callback = Callback()
    unread, read = Unread(), Unread(0.5)
    context_of(callback).report(GPU, 1, 7, {"loss": unread})  # type: ignore[dict-item]
    context_of(callback).report(GPU, 1, 10, {"loss": read})  # type: ignore[dict-item]
    assert (unread.looks, read.looks, callback.seen) == (0, 1, [7, 10])
    with pytest.raises(FloatingPointError, match="nan"):
        context_of(callback).report(GPU, 1, 20, {"loss": Unread()})  # type: ignore[dict-item]
    with pytest.raises(FloatingPointError, match="nan"):
        context_of(callback).report(torch.device("cpu"), 1, 7, {"loss": Unread()})  # type: ignore[dict-item]


def test_dropout_on_a_gpu_is_seeded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    generators = [torch.Generator(), torch.Generator()]
    before = torch.random.get_rng_state()
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    Runtime(GPU).seed_forward(3, 2, 11)
    assert generators[1].initial_seed() == derive_seed(3, "forward", 2, 11)
    assert generators[0].initial_seed() != generators[1].initial_seed()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_clock_is_read_after_the_work_of_its_own_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Stream:
        def synchronize(self) -> None:
            calls.append("synchronize")

    def current_stream(device: torch.device) -> Stream:
        calls.append(str(device))
        return Stream()

    def perf_counter() -> float:
        calls.append("clock")
        return 5.0

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(runtime, "perf_counter", perf_counter)
    assert Runtime(GPU).now() == 5.0
    assert calls == ["cuda:1", "synchronize", "clock"]
    calls.clear()
    assert Runtime(torch.device("cpu")).now() == 5.0
    assert calls == ["clock"]


def test_layers_are_timed_after_all_work_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    partition.synchronized_ns(GPU)
    partition.synchronized_ns(torch.device("cpu"))
    assert calls == [GPU]


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_needs_compute_capability_8(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", {GPU: capability}.get)
    assert has_bf16_units(GPU) is expected


def test_the_hardware_of_a_run_on_a_gpu_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", {GPU: "a GPU"}.get)
    assert hardware(GPU) == "a GPU"
