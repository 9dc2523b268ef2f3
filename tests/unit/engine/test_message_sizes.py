"""Bytes of the messages of a batch, by hand."""

import pytest

from counterflow.algorithms import LocalAlgorithm
from counterflow.algorithms.stale_gradient import StaleGradient
from counterflow.engine.job import Job
from counterflow.engine.message_sizes import MessageBytes, local_bytes, pipeline_bytes
from counterflow.message import HEADER_BYTES
from counterflow.trainer.job_builder import load_job
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL

B, D, C = 32, 24, 10
MODEL = ("blocks=3", f"model.width={D}", "model.hidden=2", "model.norm=none", "train.steps=9", f"train.batch_size={B}")
NUMBERS = {"fp32": [4 * B * D], "bf16": [2 * B * D], "int8": [B * D, 4 * B]}
"""Bytes of the tensors in which a wire carries ``[B, D]``."""


def message(*tensors: int) -> int:
    return HEADER_BYTES + sum(-(-size // 64) * 64 for size in tensors)


def job_of(*overrides: str) -> Job:
    return load_job(configured(*SMALL, *MODEL, *overrides))


def sizes(*overrides: str) -> MessageBytes:
    job = job_of(*overrides)
    assert isinstance(job.algorithm, LocalAlgorithm)
    return local_bytes(job, job.algorithm.rule_set(job.rule_context))


@pytest.mark.parametrize("wire", NUMBERS)
def test_bll_sends_activations_and_latents_up_and_books_and_labels_down(wire: str) -> None:
    found = sizes("algorithm=bll", f"engine.wire={wire}")
    book = (4 if wire == "fp32" else 2) * C * D
    assert found == {"up": [message(*NUMBERS[wire], *NUMBERS[wire])] * 2, "down": [message(book, B)] * 2}


def test_books_come_with_some_batches_only() -> None:
    found = sizes("algorithm=bll", "algorithm.feedback.refresh=4")["down"]  # 3 of 9 batches
    assert found == [round((3 * message(4 * C * D, B) + 6 * message(B)) / 9)] * 2


@pytest.mark.parametrize("wire", NUMBERS)
def test_other_rules(wire: str) -> None:
    overrides = (f"engine.wire={wire}",)
    assert sizes("algorithm=predsim", *overrides) == {"up": [message(*NUMBERS[wire])] * 2, "down": [message(B)] * 2}
    al = sizes("algorithm=al", f"algorithm.dim={D}", *overrides)
    assert al == {"up": [message(*NUMBERS[wire], *NUMBERS[wire])] * 2, "down": [0, 0]}


@pytest.mark.parametrize("wire", NUMBERS)
def test_backprop_sends_as_much_down_as_up(wire: str) -> None:
    job = job_of("algorithm=bp", "schedule=naive", f"engine.wire={wire}")
    up = [message(*NUMBERS[wire])] * 2
    stale = StaleGradient(job.rule_context, lambda n, block: None, 0.0)
    assert local_bytes(job, stale) == {"up": up, "down": up}
    job = job_of("algorithm=bp", "schedule=gpipe", f"engine.wire={wire}", "train.microbatches=4")
    assert pipeline_bytes(job) == {"up": [sum(NUMBERS[wire])] * 2, "down": [sum(NUMBERS[wire])] * 2}


def test_every_part_of_a_batch_has_a_header() -> None:
    whole, parts = (sizes("algorithm=predsim", f"train.accumulate={m}") for m in (1, 4))
    assert parts["up"] == [size + 3 * HEADER_BYTES for size in whole["up"]]
    assert parts["down"] == whole["down"], "labels come down once"
