"""Backprop with a pipeline "added directly": its updates to the bit, and their error."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counterflow.cli.hydra_app import load_config
from counterflow.engine.factory import build_engine
from counterflow.engine.job import Job
from counterflow.models.partition import split_network
from counterflow.trainer.job_builder import load_job
from counterflow.transport import connect
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, summary_of, unrecorded

NAIVE = ("algorithm=bp", "schedule=naive")
PLAIN = ("optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "optimizer.schedule=constant", "model.width=16")
STEPS = 12


class Errors:
    """A callback that keeps the update errors."""

    def __init__(self) -> None:
        self.errors: dict[tuple[int, int], float] = {}

    def should_log(self, n: int) -> bool:
        return True

    def on_step(self, block: int, n: int, metrics: dict[str, Tensor]) -> None:
        if "update_error" in metrics:
            self.errors[block, n] = float(metrics["update_error"])

    def on_eval(self, block: int, n: int, split: str, figures: dict[str, float]) -> None:
        pass


def prepared(blocks: int = 4) -> Job:
    return load_job(load_config([*SMALL, *NAIVE, *PLAIN, "train.log_every=1", f"blocks={blocks}"]))


def run(job: Job) -> Errors:
    callback = Errors()
    build_engine(job).run(unrecorded(connect(None, 0, 1, timeout=30), callback))
    return callback


def late_gradients(job: Job) -> None:
    """The loop from the definition: the gradient of batch n reaches block k when batch n + 2 (N - k) has gone up."""
    assert job.cut is not None
    blocks = split_network(job.network, job.cut)
    N = len(blocks)
    optimizers = [torch.optim.SGD(f.parameters(), lr=0.1) for f in blocks]
    inputs: list[dict[int, Tensor]] = [{} for _ in blocks]
    gradients: list[dict[int, Tensor]] = [{} for _ in blocks]
    for step in range(STEPS + 2 * N):
        if step < STEPS:
            a = job.batches.inputs(step)
            for k, f in enumerate(blocks):
                inputs[k][step] = a
                with torch.no_grad():
                    a = f(a)
        for k, f in enumerate(blocks):
            n = step - 2 * (N - 1 - k)
            if not 0 <= n < STEPS:
                continue
            x = inputs[k].pop(n).requires_grad_()
            if k == N - 1:
                F.cross_entropy(f(x), job.batches.labels(n)).backward()
            else:
                f(x).backward(gradients[k].pop(n))
            assert x.grad is not None
            if k > 0:
                gradients[k - 1][n] = x.grad
            optimizers[k].step()
            optimizers[k].zero_grad()


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_equals_the_loop_of_late_gradients_to_the_bit(blocks: int) -> None:
    ours, expected = prepared(blocks), prepared(blocks)
    run(ours)
    late_gradients(expected)
    for (name, value), other in zip(ours.network.named_parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_updates_are_wrong_below_the_top_and_right_without_a_pipeline() -> None:
    errors = run(prepared()).errors
    assert errors.keys() == {(block, n) for block in range(1, 5) for n in range(STEPS)}
    assert errors[4, 0] == 0  # nothing has changed yet above or below
    assert min(errors[1, n] for n in range(STEPS)) > 0.01
    alone = run(prepared(blocks=1)).errors
    assert max(alone.values()) == 0


@pytest.mark.parametrize(("ranks", "depth"), [(2, 1), (3, 4), (4, 1)])
def test_processes_and_delays_change_nothing(pool: Pool, ranks: int, depth: int) -> None:
    options = (*NAIVE, "model.dropout=0.2", "train.log_every=1")
    alone = summary_of(pool, 1, *options)["fingerprint"]
    together = summary_of(pool, ranks, *options, f"engine.depth={depth}", delays=0.01, seed=depth)
    assert together["fingerprint"] == alone


def test_the_error_is_reported_where_all_weights_are(pool: Pool, tmp_path: Path) -> None:
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        summary_of(pool, ranks, *NAIVE, directory=folder)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        reported = ["update_error" in row for row in rows if row["event"] == "train"]
        assert all(reported) if ranks == 1 else not any(reported)
