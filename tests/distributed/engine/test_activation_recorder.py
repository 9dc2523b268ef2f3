"""A file with the outputs of all blocks for test samples."""

from pathlib import Path

import numpy as np
import pytest
import torch

from counterflow.cli.hydra_app import load_config
from counterflow.engine.evaluation import ActivationRecorder
from counterflow.schedule import RunPlan
from counterflow.trainer.job_builder import load_job
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, summary_of


@pytest.mark.parametrize(("algorithm", "ranks"), [("bll", 2), ("bp", 2), ("al", 1)])
def test_samples_of_all_test_data_at_every_block(pool: Pool, tmp_path: Path, algorithm: str, ranks: int) -> None:
    overrides = (
        f"algorithm={algorithm}",
        "run.activations=50",
        "model.width=24",
        "train.steps=100",
        "optimizer.lr=0.01",
        "train.evaluate_every=0",
    )
    summary = summary_of(pool, ranks, *overrides, directory=tmp_path / "run")
    file = np.load(tmp_path / "run" / "activations.npz")
    assert {name: file[name].shape for name in file.files} == {
        "labels": (50,),
        "inputs": (50, 64),
        **{f"block_{k}": (50, 24) for k in (1, 2, 3)},
        "block_4": (50, 24 if algorithm == "al" else 10),  # AL leaves the output layer out
    }
    job = load_job(load_config([*SMALL, *overrides]))
    labels = job.batches.labels_of(job.batches.test)
    rows = [i * len(labels) // 50 for i in range(50)]
    assert file["labels"].tolist() == labels[rows].tolist()
    images = torch.cat([job.batches.evaluation_inputs(e) for e in job.batches.test])
    assert np.array_equal(file["inputs"], images[rows].flatten(1).numpy())
    if algorithm != "al":  # which predicts at the bottom
        hits = float((file["block_4"].argmax(1) == file["labels"]).mean())
        assert hits == pytest.approx(summary["test_accuracy"], abs=0.15)
        assert summary["test_accuracy"] > 0.3


def test_only_test_samples_after_the_last_batch_are_kept() -> None:
    recorder = ActivationRecorder(3, 4, RunPlan(2, 1, evaluate_every=1, test_batches=2, validation_batches=1))
    for n, e in ((0, 0), (1, 0), (1, 1), (1, 2)):
        recorder.offer(n, e, torch.full((2, 4), 10.0 * n + e))
    kept = recorder.take()
    assert kept is not None
    assert kept[:, 0].tolist() == [11.0, 11.0, 12.0]
    assert ActivationRecorder(0, 4, RunPlan(2, 1)).take() is None


def test_large_maps_are_pooled() -> None:
    recorder = ActivationRecorder(2, 2, RunPlan(1, 1, test_batches=1))
    recorder.offer(0, 0, torch.ones(2, 64, 32, 32))
    kept = recorder.take()
    assert kept is not None
    assert kept.shape == (2, 4096)
