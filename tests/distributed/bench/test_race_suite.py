"""Suite ``time_to_accuracy`` on a small scale, and the whole runs that it times."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from counterflow.bench import race_suite
from counterflow.bench.cases import CaseFactory
from counterflow.bench.options import BenchContext, BenchOptions, TaskOptions
from counterflow.bench.race_suite import draw_time_to_accuracy, measure_time_to_accuracy
from counterflow.bench.results import SuiteResult
from counterflow.bench.whole_run import WholeRun, train_whole, train_whole_ddp
from counterflow.bench.workers import WorkerSettings, run_workers
from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig

SETTINGS = WorkerSettings(timeout=100.0)


def config(*options: str) -> TrainConfig:
    sizes = (
        "data=digits",
        "data.validation=0.2",
        "model.hidden=2",
        "model.width=32",
        "train.batch_size=32",
        "train.steps=100",
    )
    return load_config([*sizes, "device=cpu", "engine.threads=1", *options])


def figure(runs: list[WholeRun]) -> float:
    ((found,),) = (run.evaluations for run in runs if run.evaluations)
    assert isinstance(found["accuracy"], float)
    return found["accuracy"]


def test_a_whole_run_has_the_figure_of_any_number_of_ranks() -> None:
    alone, split = (run_workers(SETTINGS, ranks, train_whole, config("blocks=2")) for ranks in (1, 2))
    assert figure(alone) == figure(split) > 0.2
    assert alone[0].sent_bytes == 0 < min(run.sent_bytes for run in split)
    assert sum(run.flops for run in split) == alone[0].flops > 0
    assert all(run.seconds > 0 and run.batches == 100 and run.batch == 32 for run in split)


def test_ddp_learns_what_one_process_does() -> None:
    options = ("algorithm=bp", "blocks=1", "algorithm.smoothing=0.1")
    alone = run_workers(SETTINGS, 1, train_whole, config(*options))
    shared = run_workers(SETTINGS, 2, train_whole_ddp, config(*options))
    assert figure(shared) == pytest.approx(figure(alone), abs=0.01)  # sums in another order
    assert sum(run.flops for run in shared) == alone[0].flops
    assert len({run.sent_bytes for run in shared}) == 1
    assert shared[0].sent_bytes > 4 * 32 * (64 + 32 + 10)


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race of CIFAR-10, on the digits."""
    small = race_suite._RACES["cifar10"]
    kept = tuple(each for each in small.methods if each.name in ("BLL", "1F1B m=4", "DDP"))
    options = ("experiment=cifar10_tuning", "scale=smoke")
    monkeypatch.setitem(
        race_suite._RACES,
        "cifar10",
        replace(small, options=options, length="train.steps", lengths=(2, 4), methods=kept),
    )
    monkeypatch.setattr(race_suite, "_LINK_BATCHES", 3)
    monkeypatch.setattr(race_suite, "_LINK_WARMUP", 1)


def measure(out: Path, target: float) -> SuiteResult:
    options = BenchOptions(
        suite="time_to_accuracy", repeats=2, task=TaskOptions(root=str(out), target=target), out=str(out)
    )
    return measure_time_to_accuracy(BenchContext(options, CaseFactory(out), out, lambda text: None))


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("race")
def test_a_small_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = measure(tmp_path, target=1e-6)
    fast = [case for case in suite.cases if not case.name.endswith("slow link")]
    assert [case.name for case in fast] == ["BLL", "1F1B m=4", "DDP"]
    assert [case.extra["locks"] for case in fast] == ["no", "yes", "yes"]
    for case in fast:
        assert (case.extra["length"], case.extra["samples"], case.repeats) == (2, 64, 2)
        assert case.extra["seconds_lowest"] <= case.extra["seconds"] <= case.extra["seconds_highest"]
    assert len(suite.cases) in (3, 6)  # without and with namespaces for the slow link
    assert all(goal.reached is not None for goal in suite.goals[: 1 + (len(suite.cases) == 6)])
    draw_time_to_accuracy(suite.to_json(), tmp_path)
    assert (tmp_path / "time-to-accuracy-cifar10.png").stat().st_size > 1000

    kept = [json.loads(line) for line in (tmp_path / "race-cifar10.jsonl").read_text().splitlines()]
    assert len(kept) == 6
    monkeypatch.setattr(race_suite, "unavailable_reason", lambda: "not now")
    monkeypatch.setattr(race_suite, "run_workers", lambda *_: pytest.fail("a finished run is repeated"))
    again = measure(tmp_path, target=1e-6)
    assert again.cases == fast


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("race")
def test_who_does_not_arrive_counts_for_nothing(tmp_path: Path) -> None:
    suite = measure(tmp_path, target=1.0)
    assert all(case.doubt.endswith("after train.steps=4") for case in suite.cases)
    assert [goal.reached for goal in suite.goals] == [None, None]
    assert len((tmp_path / "race-cifar10.jsonl").read_text().splitlines()) == 6  # the first seed of two lengths was far


def test_the_race_of_cifar10_wants_its_folder(tmp_path: Path) -> None:
    options = BenchOptions(suite="time_to_accuracy")
    with pytest.raises(ValueError, match=r"task\.root=null: must be the folder of CIFAR-10"):
        measure_time_to_accuracy(BenchContext(options, CaseFactory(tmp_path), tmp_path, lambda text: None))
