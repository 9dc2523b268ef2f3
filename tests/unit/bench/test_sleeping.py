"""Sleeping blocks take the configured times, separately for forward, input gradient and weight gradient."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterflow.algorithms.optimizer import BatchPart
from counterflow.bench.cases import CaseFactory
from counterflow.bench.sleeping import Jitter, Sleep, SleepingLayer, sleeping_network
from counterflow.engine.profile import rules_of
from counterflow.trainer.job_builder import load_job

FORWARD, BACKWARD = 0.03, 0.06
SLEEP = Sleep(FORWARD, BACKWARD, 0.0, batch=8, width=4)


def timed(action: object) -> float:
    start = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - start


def lasts(seconds: float, requested: float) -> bool:
    """A sleep is never shorter than requested; on a busy machine it may be longer."""
    return requested <= seconds < requested + 0.05


@pytest.mark.parametrize("samples", [8, 2])
def test_time_by_the_share_of_the_batch(samples: int) -> None:
    layer = SleepingLayer(2, 3, SLEEP)
    x = torch.zeros(samples, 4, requires_grad=True)
    out = []
    assert lasts(timed(lambda: out.append(layer(x))), FORWARD * samples / 8)
    assert lasts(timed(lambda: torch.autograd.backward(out[0].sum())), BACKWARD * samples / 8)
    assert x.grad is not None
    assert layer.weight.grad is not None


def test_half_of_the_backward_pass_is_for_the_input() -> None:
    layer = SleepingLayer(2, 3, SLEEP)
    x = torch.zeros(8, 4, requires_grad=True)
    out = layer(x).sum()
    assert lasts(timed(lambda: torch.autograd.grad(out, x, retain_graph=True)), BACKWARD / 2)
    assert lasts(timed(lambda: torch.autograd.grad(out, layer.weight)), BACKWARD / 2)


def test_the_bottom_takes_as_long_though_its_input_needs_no_gradient() -> None:
    out = SleepingLayer(1, 3, SLEEP)(torch.zeros(8, 1, 4, 4)).sum()
    assert lasts(timed(lambda: torch.autograd.backward(out)), BACKWARD)


def test_nothing_sleeps_outside_of_training() -> None:
    layers = sleeping_network(2, replace(SLEEP, forward=10.0)).eval()
    assert timed(lambda: layers(torch.zeros(8, 1, 4, 4))) < 5
    assert layers(torch.zeros(8, 1, 4, 4)).shape == (8, 10)


def test_jitter_is_deterministic_and_slows_one_block_at_a_time() -> None:
    jitter = Jitter(0.25, 3.0, blocks=4)
    table = [[jitter(block, n) for block in range(1, 5)] for n in range(2000)]
    assert table == [[jitter(block, n) for block in range(1, 5)] for n in range(2000)]
    slow = [row.count(3.0) for row in table]
    assert set(slow) == {0, 1}
    assert 0.2 < sum(slow) / len(slow) < 0.3
    assert all(sum(row[block] == 3.0 for row in table) > 50 for block in range(4))


def test_micro_batches_of_one_batch_share_its_jitter() -> None:
    slow = next(n for n in range(100) if Jitter(0.5, 4.0, 1)(1, n) == 4.0)
    layer = SleepingLayer(1, 1, Sleep(0.01, 0.0, 0.0, batch=4, width=2, jitter=Jitter(0.5, 4.0, 1)))
    half = torch.zeros(2, 1, 4, 4)
    seconds = [timed(lambda: layer(half)) for _ in range(2 * slow + 2)]
    assert min(seconds[2 * slow :]) >= 0.02


def test_parts_of_a_batch_share_its_time_and_its_message(tmp_path: Path) -> None:
    factory = CaseFactory(tmp_path)
    factory.write_images(16, pixels=2, channels=1)
    case = factory.sleeping("free", replace(SLEEP, parts=4), 2, batches=8)
    assert case.config.train.accumulate == 4
    rule = rules_of(load_job(case.config), [1, 1]).rule(1)
    message: list[torch.Tensor] = []
    assert lasts(timed(lambda: message.extend(rule.forward_message(()))), FORWARD / 4)
    assert message[0].shape == (2, 4)
    assert lasts(timed(lambda: rule.update(BatchPart(0, 1, 4), (), ())), BACKWARD / 4)
