"""Training over channels of CUDA tensors on gloo, with a device that is none: blocks compute on the CPU, messages are
staged in memory that stands for pinned one, and their copies are late."""

from pathlib import Path
from typing import Any

import pytest

from counterflow.config import TrainConfig
from counterflow.trace import session
from counterflow.trace.recorder import NAMES
from counterflow.trace.stream_recorder import StreamRecorder
from counterflow.transport import communicator
from counterflow.transport.buffers import CudaGloo
from tests.helpers.chrome_trace import read_traces
from tests.helpers.fake_device import FakeDevice
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, configuration, summary_of, train_rank


def staged(rank: int, size: int, store_path: str, config: TrainConfig, folder: Path | None) -> Any:
    """`train_rank`, with the buffers and the recorder of a GPU, and how often the device was waited for."""
    device: Any = FakeDevice()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(communicator, "make_buffers", lambda *_: CudaGloo(device))
        patch.setattr(session, "make_recorder", lambda _: StreamRecorder(device))
        summary = train_rank(rank, size, store_path, config, 0.0, 0, folder)
    return summary, device.operations.count("wait for the compute stream"), device.operations.count("lend")


RUNS: dict[str, tuple[int | str, ...]] = {
    "bll": (3, "blocks=3"),
    "int8": (2, "blocks=2", "engine.wire=int8"),
    "replicas": (2, "blocks=2", "replicas=2"),
    "naive": (2, "algorithm=bp", "schedule=naive", "blocks=2"),
}


@pytest.mark.parametrize(("ranks", "overrides"), [(run[0], run[1:]) for run in RUNS.values()], ids=RUNS)
def test_staged_messages_change_no_bit(pool: Pool, ranks: int, overrides: tuple[str, ...]) -> None:
    (summary, waits, lent), *_ = pool.run(ranks, staged, configuration(*SMALL, *overrides), None)
    assert waits > 12, "messages were staged"
    assert lent > 0
    assert summary["fingerprint"] == summary_of(pool, 1, *overrides)["fingerprint"]


def test_a_trace_by_events_has_the_spans_of_one_by_the_clock(pool: Pool, tmp_path: Path) -> None:
    config = configuration(*SMALL, "blocks=2", "trace=true")
    pool.run(2, staged, config, tmp_path / "events")
    summary_of(pool, 2, "blocks=2", "trace=true", directory=tmp_path / "clock")
    events, clock = (read_traces(tmp_path / name / "trace.json") for name in ("events", "clock"))
    for one, other in zip(events, clock, strict=True):
        kinds = [
            sorted((int(row["name"]), int(row["lane"]), int(row["n"]), int(row["part"])) for row in trace.spans)
            for trace in (one, other)
        ]
        loss = NAMES.index("loss")  # the rest of a span has no length where the device does nothing
        assert [kind for kind in kinds[0] if kind[0] != loss] == [kind for kind in kinds[1] if kind[0] != loss]
