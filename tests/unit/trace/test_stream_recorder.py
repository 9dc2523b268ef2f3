"""Spans by events on a stream, of a device that is none: their times are the kernels', and not the host's."""

from time import perf_counter, sleep
from typing import Any, cast

import numpy as np
import pytest
import torch

from counterflow.trace.recorder import NAMES, Recorder, span
from counterflow.trace.stream_recorder import StreamRecorder, make_recorder
from tests.helpers.fake_device import FakeDevice


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


def recorder_of(device: FakeDevice) -> StreamRecorder:
    return StreamRecorder(cast(Any, device))


def kernel(device: FakeDevice, milliseconds: float) -> None:
    device.launch("kernel", lambda: None, milliseconds=milliseconds)


def device_times(recorder: StreamRecorder, device: FakeDevice) -> list[tuple[str, float, float]]:
    """Names, starts and ends in milliseconds of the device, from those that the recorder puts on the host's clock."""
    spans = recorder.spans()
    zero, scale = spans["start"][0], device.clock / (spans["end"].max() - spans["start"][0])
    return [
        (NAMES[row["name"]], round(scale * (row["start"] - zero), 3), round(scale * (row["end"] - zero), 3))
        for row in spans
    ]


def test_a_span_is_as_long_as_its_kernels(device: FakeDevice) -> None:
    recorder = recorder_of(device)
    with span(recorder, "forward", 1, 0):
        kernel(device, 30.0)
        with span(recorder, "send", 1, 0):
            sleep(0.05)  # of the host, while the device has work to do
            kernel(device, 10.0)
        kernel(device, 5.0)
    with span(recorder, "learn", 1, 0):
        kernel(device, 55.0)
    assert device.clock == 0.0, "nothing waited for the device"
    found = device_times(recorder, device)
    assert found == [("forward", 0.0, 45.0), ("send", 30.0, 40.0), ("learn", 45.0, 100.0)]


def test_the_rest_is_what_no_span_covers(device: FakeDevice) -> None:
    recorder = recorder_of(device)
    start = recorder.now()
    kernel(device, 20.0)
    with span(recorder, "backward", 2, 3):
        kernel(device, 40.0)
    with span(recorder, "update", 2, 3):
        kernel(device, 10.0)
    kernel(device, 30.0)
    recorder.rest("loss", 2, 3, start, recorder.now())
    assert device_times(recorder, device) == [
        ("loss", 0.0, 20.0),
        ("backward", 20.0, 60.0),
        ("update", 60.0, 70.0),
        ("loss", 70.0, 100.0),
    ]


def test_times_lie_between_the_start_and_the_end_on_the_host(device: FakeDevice) -> None:
    before = perf_counter()
    recorder = recorder_of(device)
    for n in range(3):
        with span(recorder, "forward", 1, n, part=n):
            kernel(device, 1e6)  # a clock that drifts a lot
    spans = recorder.spans()
    assert before <= spans["start"][0] <= spans["end"][-1] <= perf_counter()
    assert spans["n"].tolist() == spans["part"].tolist() == [0, 1, 2]


def test_hours_keep_microseconds_and_the_order_of_spans(device: FakeDevice) -> None:
    """Times of CUDA are float32: a span of 20 us, hours after the start, would have the length 0 or 250 us."""
    recorder = recorder_of(device)
    for n in range(3000):
        with span(recorder, "learn", 1, n), span(recorder, "loss", 1, n):
            kernel(device, 0.02)
        kernel(device, 3000.0)
        device.synchronize()
    found = recorder.spans()
    start, end = found["start"], found["end"]
    assert len(found) == 6000
    assert NAMES[found["name"][0]] == "learn"
    assert np.all(start[::2] <= start[1::2])
    assert np.all(end[1::2] <= end[::2])
    assert np.all(end[:-2:2] <= start[2::2])
    gaps = (start[2::2] - end[:-2:2]) / (end.max() - start.min()) * device.clock
    assert gaps == pytest.approx(3000.0, rel=1e-3)
    raw = recorder._resolved.spans()
    assert (raw["end"] - raw["start"]) == pytest.approx(20e-6, rel=1e-3)


def test_spans_are_resolved_while_the_run_goes_on(device: FakeDevice) -> None:
    recorder = recorder_of(device)
    for n in range(2000):
        with span(recorder, "forward", 1, n):
            kernel(device, 1.0)
    assert len(recorder._pending) <= 1024
    assert recorder.spans()["n"].tolist() == list(range(2000))


def test_only_a_gpu_needs_it() -> None:
    assert type(make_recorder(torch.device("cpu"))) is Recorder
    assert Recorder().now is perf_counter
