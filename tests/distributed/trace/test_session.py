"""``trace=true`` on real runs: what is recorded is what happened, and changes nothing."""

import json
import math
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from counterflow.cli.console import install_cli_logging
from counterflow.cli.hydra_app import load_config
from counterflow.engine.run_context import PreemptedError
from counterflow.rank_info import RankInfo
from counterflow.trace import rank_trace
from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.recorder import NAMES, SHORT
from counterflow.trainer.fit import fit
from counterflow.trainer.job_builder import load_job
from counterflow.trainer.rank0 import open_run_dir
from counterflow.transport import Communicator, connect
from tests.helpers.chrome_trace import read_traces
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, configuration, summary_of, train_rank

STEPS = 12
EVALUATIONS = (4, 9, 11)
"""Batches that one follows."""
OUTER = {"target", "forward", "learn", "evaluate", "predict", "checkpoint", "resend"}
TWO = ("blocks=2", "trace=true")


def traced(pool: Pool, folder: Path, ranks: int, *overrides: str) -> tuple[dict[str, Any], list[RankTrace]]:
    summary = summary_of(pool, ranks, "trace=true", *overrides, directory=folder)
    assert sorted(path.name for path in folder.glob("t*")) == ["timeline.png", "trace.json"]
    assert not (folder / "spans").exists()
    return summary, read_traces(folder / "trace.json")


def count(trace: RankTrace, *keys: str) -> Counter[tuple[Any, ...]]:
    """Number of spans by name and ``keys``."""
    return Counter(
        (NAMES[row["name"]], *(int(row[key]) for key in keys)) for row in trace.spans if NAMES[row["name"]] != "loss"
    )


def nested(trace: RankTrace, lane: int | None = None) -> None:
    """Assert that each span of a lane ends before the one around it, and before the next one beside it begins."""
    spans = trace.spans if lane is None else trace.spans[trace.spans["lane"] == lane]
    around: list[float] = []
    tick = 1.5e-9
    for _, _, _, _, start, end in spans.tolist():
        assert start <= end
        while around and around[-1] <= start + tick:
            around.pop()
        assert not around or end <= around[-1] + tick
        around.append(end)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run `bll`."""
    return tmp_path_factory.mktemp("bll") / "run"


@pytest.fixture(scope="module")
def bll(pool: Pool, folder: Path) -> tuple[dict[str, Any], list[RankTrace]]:
    return traced(pool, folder, 2, "blocks=3", "checkpoint.every=6", "data.validation=0")


@pytest.fixture(scope="module")
def untraced(pool: Pool) -> Callable[..., str]:
    """The fingerprint of a run without a trace."""
    return cache(lambda ranks, *overrides: summary_of(pool, ranks, *overrides)["fingerprint"])


def test_not_a_bit_changes(pool: Pool, bll: tuple[dict[str, Any], list[RankTrace]]) -> None:
    plain = summary_of(pool, 2, "blocks=3", "checkpoint.every=6", "data.validation=0")
    assert bll[0]["fingerprint"] == plain["fingerprint"]


def test_every_block_does_everything_once_a_batch(bll: tuple[dict[str, Any], list[RankTrace]]) -> None:
    first, second = bll[1]
    assert (first.lanes, second.lanes) == ({1: "block 1", 2: "block 2"}, {3: "block 3"})
    for block, found in ((1, first), (2, first), (3, second)):
        counts = count(found, "lane", "n")
        for n in range(STEPS):
            once = {name: counts[name, block, n] for name in ("target", "forward", "learn")}
            assert once == {"target": 1, "forward": 1, "learn": 1}
            learners = 1 if block == 1 else 2  # theta, and phi
            assert counts["backward", block, n] == counts["update", block, n] == learners
            assert counts["emit", block, n] == (block > 1)
            assert counts["checkpoint", block, n] == (n in (5, 11))
            assert (counts["evaluate", block, n] > 0) == (n in EVALUATIONS)
            tests = counts["evaluate", block, n]
            assert counts["receive", block, n] == 2 + tests
            assert counts["send", block, n] == (block > 1) + (block < 3) * (1 + tests)


def test_spans_lie_within_those_around_them(bll: tuple[dict[str, Any], list[RankTrace]]) -> None:
    for found in bll[1]:
        nested(found)


def test_what_is_learnt_is_loss_backward_and_update(bll: tuple[dict[str, Any], list[RankTrace]]) -> None:
    """One after the other; only what the engine does with the figures comes after them."""
    for found in bll[1]:
        spans = [(NAMES[number], *others) for number, *others in found.spans.tolist()]
        for _, block, n, _, start, end in [row for row in spans if row[0] == "learn"]:
            within = [row for row in spans if row[:3] != ("learn", block, n) and start <= row[4] and row[5] <= end]
            names = [row[0] for row in within]
            assert set(names) == {"loss", "backward", "update"}
            assert names[0] == "loss"
            assert [name for name in names if name != "loss"] == ["backward", "update"] * (1 if block == 1 else 2)
            assert all(after[4] - before[5] < SHORT + 2e-9 for before, after in pairwise(within))


def test_actions_and_the_gaps_between_them_are_all_of_the_time(bll: tuple[dict[str, Any], list[RankTrace]]) -> None:
    for found in bll[1]:
        actions = found.spans[[NAMES[number] in OUTER for number in found.spans["name"]]]
        gaps = actions["start"][1:] - actions["end"][:-1]
        assert gaps.min() > -2e-9
        wall = actions["end"][-1] - actions["start"][0]
        busy = (actions["end"] - actions["start"]).sum()
        assert busy + gaps.sum() == pytest.approx(wall, rel=1e-6)
        assert busy > 0.8 * wall  # between two actions hardly anything happens


def test_waits_are_those_of_the_summary(bll: tuple[dict[str, Any], list[RankTrace]]) -> None:
    summary, traces = bll
    steady = 3
    for rank, found in enumerate(traces):
        learn = found.spans["name"] == NAMES.index("learn")
        start = found.spans["end"][learn & (found.spans["n"] == steady - 1)].max()
        receive = found.spans[(found.spans["name"] == NAMES.index("receive")) & (found.spans["start"] >= start)]
        share = (receive["end"] - receive["start"]).sum() / (found.spans["end"].max() - start)
        assert share == pytest.approx(summary["wait_fraction"][rank], abs=0.05)


def test_ranks_share_a_clock(bll: tuple[dict[str, Any], list[RankTrace]]) -> None:
    """No activation is taken before it was sent, and no target."""

    def ends(found: RankTrace, name: str, block: int) -> dict[int, float]:
        spans = found.spans[(found.spans["name"] == NAMES.index(name)) & (found.spans["lane"] == block)]
        return dict(zip(spans["n"].tolist(), spans["end"].tolist(), strict=True))

    first, second = bll[1]
    up, down = ends(first, "forward", 2), ends(second, "emit", 3)
    above, below = ends(second, "forward", 3), ends(first, "target", 2)
    starts = {n: float(second.spans["start"][second.spans["n"] == n].min()) for n in up}
    assert all(starts[n] < above[n] for n in up)
    assert all(down[n] <= below[n] for n in down)
    sent = first.spans[(first.spans["name"] == NAMES.index("send")) & (first.spans["lane"] == 2)]
    for n in range(STEPS):
        assert float(sent["start"][sent["n"] == n].min()) <= above[n]


def test_the_file_is_valid(bll: tuple[dict[str, Any], list[RankTrace]], folder: Path) -> None:
    _, traces = bll
    content = json.loads((folder / "trace.json").read_text())
    assert content["otherData"]["clock_error_us"] == 0
    spans = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == sum(len(found.spans) for found in traces)
    assert min(event["ts"] for event in spans) == 0
    for rank in range(2):
        assert sorted(starts := [e["ts"] for e in spans if e["pid"] == rank]) == starts


@pytest.mark.parametrize(
    ("rule", "updates"),
    [
        (("algorithm=al",), (2, 2)),
        (("algorithm=predsim",), (1, 1)),
        (("algorithm=bp", "schedule=naive"), (1, 1)),
        (("algorithm=bp", "schedule=pipedream"), (1, 1)),
    ],
    ids=["al", "predsim", "naive", "pipedream"],
)
def test_other_rules_too(pool: Pool, tmp_path: Path, rule: tuple[str, ...], updates: tuple[int, int]) -> None:
    summary, traces = traced(pool, tmp_path / "run", 2, "blocks=2", *rule)
    assert summary["fingerprint"] == summary_of(pool, 2, "blocks=2", *rule)["fingerprint"]
    for found, each in zip(traces, updates, strict=True):
        nested(found)
        counts = count(found, "n")
        for n in range(STEPS):
            assert counts["forward", n] == counts["learn", n] == 1
            assert counts["update", n] == counts["backward", n] == each
    assert bool(count(traces[0])["predict",]) == ("algorithm=al" in rule)


PIPELINES = {
    "1f1b": (2, 4, {0: {2: "blocks 1-2"}, 1: {4: "blocks 3-4"}}),
    "interleaved1f1b": (2, 4, {0: {1: "block 1", 3: "block 3"}, 1: {2: "block 2", 4: "block 4"}}),
    "zbv": (2, 4, {0: {1: "block 1", 4: "block 4"}, 1: {2: "block 2", 3: "block 3"}}),
    "alone": (1, 1, {0: {4: "blocks 1-4"}}),
}


@pytest.mark.parametrize("schedule", PIPELINES)
def test_pipelines(pool: Pool, untraced: Callable[..., str], tmp_path: Path, schedule: str) -> None:
    ranks, parts, lanes = PIPELINES[schedule]
    options = ("algorithm=bp", "checkpoint.every=6")
    summary, traces = traced(pool, tmp_path / "run", ranks, *options, *([f"schedule={schedule}"] if ranks > 1 else []))
    assert summary["fingerprint"] == untraced(ranks, *options)  # of any schedule
    top = 0
    for found in traces:
        assert found.lanes == lanes[found.rank]
        for lane in found.lanes:
            nested(found, lane)
        nested(found)
        counts, parted = count(found, "lane", "n"), count(found, "lane", "n", "part")
        for lane, name in found.lanes.items():
            blocks = 4 // sum(map(len, lanes.values())) if name.startswith("blocks") else 1
            for n in range(STEPS):
                assert counts["forward", lane, n] == parts
                assert counts["backward", lane, n] in ((parts, 2 * parts) if schedule == "zbv" else (parts,))
                assert counts["update", lane, n] == blocks
                assert counts["checkpoint", lane, n] == (blocks if n in (5, 11) else 0)
                for part in range(parts) if ranks > 1 else (-1,):
                    assert parted["forward", lane, n, part] == 1
                assert (counts["evaluate", lane, n] > 0) == (n in EVALUATIONS)
        losses = (found.spans["name"] == NAMES.index("loss")).sum()
        assert losses in (0, parts * STEPS)
        top += losses > 0
    assert top == 1


def test_a_resumed_run_leaves_what_it_did_itself(pool: Pool, tmp_path: Path) -> None:
    options = ("blocks=2", "checkpoint.every=4")
    run = tmp_path / "run"
    traced(pool, run, 2, *options)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "batch-00000012")
    summary, traces = traced(pool, run, 2, *options)
    assert summary["resumed_after"] == 8
    for found in traces:
        assert {n for name, n in count(found, "n") if name == "forward"} == set(range(8, STEPS))
    assert count(traces[1])["resend",] == 2


def halted_rank(rank: int, size: int, store_path: str, overrides: list[str], folder: Path) -> int:
    """A rank of a run that rank 0 is asked to stop; after how many batches it did."""
    config = load_config([*overrides, f"run.dir={folder}"])
    job = load_job(config, RankInfo(rank, size))
    comm = connect(dist.FileStore(store_path, size), rank, size, timeout=config.engine.timeout)
    if rank == 0:
        threading.Thread(target=_request_stop, args=(comm,), daemon=True).start()
    point = open_run_dir(job, config, lambda text: None) if rank == 0 else None
    with nullcontext() if point is None or point.directory is None else point.directory:
        try:
            fit(job, config, comm, point)
        except PreemptedError as stop:
            comm.close()
            return stop.batches
    raise AssertionError("it was not halted")


def _request_stop(comm: Communicator) -> None:
    while not comm.stop.possible:
        time.sleep(0.01)
    time.sleep(0.2)
    comm.request_stop(signal.SIGTERM)


@pytest.mark.parametrize("algorithm", ["bll", "bp"])
def test_a_run_that_is_told_to_end_leaves_its_trace(pool: Pool, tmp_path: Path, algorithm: str) -> None:
    run = tmp_path / "run"
    options = [
        *SMALL,
        *TWO,
        f"algorithm={algorithm}",
        "train.steps=null",
        "train.epochs=100000",
        "checkpoint.every=500",
    ]
    batches = pool.run(2, halted_rank, options, run)
    assert batches[0] == batches[1] < math.inf
    assert not (run / "spans").exists()
    assert (run / "timeline.png").exists()
    for found in read_traces(run / "trace.json"):
        assert {n for name, n in count(found, "n") if name == "forward"} == set(range(batches[0]))


def test_a_disk_that_takes_no_more_costs_the_trace_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_cli_logging()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def run(where: Any, name: str, folder: Path) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, full)
            summary = train_rank(0, 1, "", configuration(*SMALL, *TWO), 0.0, 0, folder)
        assert summary["fingerprint"] == json.loads((folder / "summary.json").read_text())["fingerprint"]
        assert not [path.name for path in folder.iterdir() if path.name in ("spans", "trace.json", "timeline.png")]
        return capsys.readouterr().err

    spans, merged = tmp_path / "spans", tmp_path / "merged"
    assert run(rank_trace, "write", spans) == (
        f"note: no trace was written ({spans}/spans/rank-0: No space left on device)\n"
    )
    assert run(rank_trace, "write_chrome", merged) == (
        f"note: no trace was written ({merged}/trace.json: No space left on device)\n"
    )


def test_without_it_nothing_is_recorded(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Callable[..., None]:
        raise AssertionError("nobody asked for a trace")

    monkeypatch.setattr("counterflow.trace.recorder.Recorder.add", refused)
    train_rank(0, 1, "", configuration(*SMALL), 0.0, 0, tmp_path / "run")
    assert not list((tmp_path / "run").glob("t*"))
