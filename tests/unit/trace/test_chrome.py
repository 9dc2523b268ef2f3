import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterflow.trace.rank_trace import RankTrace, write_chrome
from counterflow.trace.recorder import DTYPE, Recorder
from tests.helpers.chrome_trace import read_traces


def traces() -> list[RankTrace]:
    found = []
    for rank in range(2):
        recorder = Recorder()
        recorder.lanes = {3: "blocks 2-3"}
        zero = 1e5 + 0.5 * rank
        recorder.add("receive", 3, 0, zero + 1e-7, zero + 2e-3)
        recorder.add("forward", 3, 0, zero, zero + 3e-3, 1)
        recorder.add("evaluate", 3, 0, zero + 4e-3, zero + 5e-3, 2)
        recorder.add("update", 1, 0, zero + 6e-3, zero + 7e-3)
        found.append(RankTrace.of(rank, recorder))
    return found


def written(of: list[RankTrace], error: float = 0.0) -> dict[str, Any]:
    file = io.BytesIO()
    write_chrome(file, of, error)
    content = json.loads(file.getvalue())
    assert isinstance(content, dict)
    return content


def test_the_file_is_what_the_format_asks_for() -> None:
    content = written(traces(), 1.5e-3)
    assert content["otherData"] == {"clock": "perf_counter of rank 0", "clock_error_us": 1500.0}
    events = content["traceEvents"]
    names = {(e["pid"], e["name"], e["tid"]): e["args"] for e in events if e["ph"] == "M"}
    for rank in range(2):
        assert names[rank, "process_name", 0] == {"name": f"rank {rank}"}
        assert names[rank, "thread_name", 1] == {"name": "block 1"}
        assert names[rank, "thread_name", 3] == {"name": "blocks 2-3"}
    assert names[0, "process_sort_index", 0]["sort_index"] > names[1, "process_sort_index", 0]["sort_index"]
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) + len(names) == len(events)
    assert len(spans) == 8
    assert all({"name", "ph", "ts", "dur", "pid", "tid", "args"} == e.keys() for e in spans)
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in spans)


def test_times_are_microseconds_since_the_first_span() -> None:
    spans = [e for e in written(traces())["traceEvents"] if e["ph"] == "X"]
    assert [(e["pid"], e["name"], e["ts"], e["dur"], e["args"]) for e in spans[:5]] == [
        (0, "forward", 0.0, 3000.0, {"batch": 0, "micro_batch": 1}),
        (0, "receive", 0.1, 1999.9, {"batch": 0}),
        (0, "evaluate", 4000.0, 1000.0, {"batch": 0, "test_batch": 2}),
        (0, "update", 6000.0, 1000.0, {"batch": 0}),
        (1, "forward", 500000.0, 3000.0, {"batch": 0, "micro_batch": 1}),
    ]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with path.open("wb") as file:
        write_chrome(file, traces(), 0.0)
    for found, expected in zip(read_traces(path), traces(), strict=True):
        assert (found.rank, found.lanes) == (expected.rank, expected.lanes)
        for name in ("name", "lane", "n", "part"):
            assert found.spans[name].tolist() == expected.spans[name].tolist()
        for name in ("start", "end"):
            np.testing.assert_allclose(found.spans[name], expected.spans[name] - 1e5, atol=2e-9)


def test_rounding_keeps_what_is_within_another_span_there() -> None:
    recorder = Recorder()
    draw = np.random.default_rng(1)
    for n in range(500):
        a, b, c, d = 12345 + n + np.sort(draw.random(4))
        recorder.add("send", 1, n, float(b), float(c))
        recorder.add("forward", 1, n, float(a), float(d))
    events = [e for e in written([RankTrace.of(0, recorder)])["traceEvents"] if e["ph"] == "X"]
    for outer, inner in zip(events[::2], events[1::2], strict=True):
        assert outer["ts"] <= inner["ts"]
        assert round(1000 * (inner["ts"] + inner["dur"])) <= round(1000 * (outer["ts"] + outer["dur"]))


def test_a_trace_without_spans_is_one_too() -> None:
    assert [e["ph"] for e in written([RankTrace.of(0, Recorder())])["traceEvents"]] == ["M", "M"]


class Nowhere(io.RawIOBase):
    """A file that counts."""

    size = 0

    def write(self, content: Any) -> int:
        self.size += len(content)
        return len(content)


def test_the_file_is_never_in_memory_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counterflow.trace.rank_trace._CHUNK", 1024)  # a quarter, and so are the spans
    spans = np.zeros(15_000, DTYPE)
    file = Nowhere()
    tracemalloc.start()
    try:
        write_chrome(file, [RankTrace(0, {0: "block 0"}, spans)], 0.0)  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.size > 1_250_000
    assert peak < file.size / 2
