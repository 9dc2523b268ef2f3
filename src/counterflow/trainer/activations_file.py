"""File ``activations.npz``: what blocks put out for samples of the test data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from counterflow.engine.evaluation import ActivationRecorder, spread
from counterflow.engine.job import Job
from counterflow.engine.run_context import RankResult
from counterflow.schedule import RunPlan


def save_activations(folder: Path, job: Job, results: Sequence[RankResult]) -> None:
    """Write ``block_1`` .. ``block_N``, ``[M, d]``, bottom to top, ``labels``, and of images ``inputs``."""
    batches = job.batches
    kept = spread(job.activations, job.test_samples)
    arrays: dict[str, Any] = {"labels": batches.labels_of(batches.test)[kept].numpy()}
    if batches.dataset.train.images:
        recorder = ActivationRecorder(job.activations, job.test_samples, RunPlan(1, 1, test_batches=1))
        for key in batches.plain(batches.test):
            recorder.offer(0, 0, batches.evaluation_inputs(key.number))
        inputs = recorder.take()
        assert inputs is not None
        arrays["inputs"] = inputs.numpy()
    for result in results:
        arrays |= {f"block_{block}": values.numpy() for block, values in result.activations.items()}
    np.savez_compressed(folder / "activations.npz", **arrays)
