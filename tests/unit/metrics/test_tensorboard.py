from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from counterflow.metrics.block_metrics import BlockMetrics, StepMetrics
from counterflow.metrics.callback import RunInfo
from counterflow.metrics.tensorboard import TensorBoardLogger


def row(n: int, event: str = "train") -> StepMetrics:
    metrics = [{"accuracy": 0.25 + n / 64}, {"accuracy": 0.5 + n / 64, "feedback_loss": 1.5}]
    records = [BlockMetrics(event, n, block, 0, m, float(n), 0.5) for block, m in enumerate(metrics, 1)]
    return StepMetrics(event, n, records, {"free_energy": 4.0 - n / 64} if event == "train" else {})


def log(logger: TensorBoardLogger, run_dir: Path | None, batches: list[int], start: int = 0) -> None:
    logger.on_start(RunInfo((), 100, 32, (0, 0), start, 0.0, run_dir))
    for n in batches:
        logger.on_step(row(n))
    logger.on_eval(row(batches[-1], "test"))
    logger.close()


def test_every_figure_becomes_a_curve(tmp_path: Path) -> None:
    log(TensorBoardLogger(), tmp_path, [0, 4])
    events = EventAccumulator(str(tmp_path)).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves == {
        "train/free_energy": [(0, 4.0), (4, 3.9375)],
        "train/accuracy/block1": [(0, 0.25), (4, 0.3125)],
        "train/accuracy/block2": [(0, 0.5), (4, 0.5625)],
        "train/feedback_loss/block2": [(0, 1.5), (4, 1.5)],
        "test/accuracy/block1": [(4, 0.3125)],
        "test/accuracy/block2": [(4, 0.5625)],
        "test/feedback_loss/block2": [(4, 1.5)],
    }


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    log(TensorBoardLogger(), tmp_path, [0, 4, 8])
    log(TensorBoardLogger(), tmp_path, [6], start=5)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/free_energy")] == [0, 4, 6]


def test_a_run_that_begins_anew_leaves_no_events_of_before(tmp_path: Path) -> None:
    for _ in range(2):
        log(TensorBoardLogger(), tmp_path, [0])
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_events_in_a_folder_of_the_users_own_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.mine").touch()
    log(TensorBoardLogger(tmp_path), None, [0])
    assert (tmp_path / "events.out.tfevents.mine").exists()
    assert len(list(tmp_path.glob("events.*"))) == 2


def test_without_any_folder_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^TensorBoardLogger: needs a path, as the run has no run directory$"):
        TensorBoardLogger().on_start(RunInfo((), 100, 32, (0, 0)))


def test_a_full_disk_costs_the_events_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
        log(TensorBoardLogger(), tmp_path, [3])
    line = f"{tmp_path}: no TensorBoard events of batch 3 (No space left on device)"
    assert [record.getMessage() for record in caplog.records] == [line, line]
