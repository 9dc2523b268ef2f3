"""PipeDream's weight stashing: its updates to the bit, and what it keeps."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.engine.factory import build_engine
from counterflow.engine.job import Job
from counterflow.models.partition import split_network
from counterflow.trainer.job_builder import load_job
from counterflow.transport import connect
from tests.helpers.configs import configured
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, summary_of, unrecorded

PIPEDREAM = ("algorithm=bp", "schedule=pipedream")
STEPS = 12
SGD = ("optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9", "optimizer.schedule=constant")
MLP = ("model.width=16",)
CNN = ("model=cnn", "model.channels=[4,4,4]", "model.strides=[1,2,1]")


class Silent:
    """A callback that keeps the losses of the top block, and the updates' errors."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.errors: dict[tuple[int, int], float] = {}

    def should_log(self, n: int) -> bool:
        return True

    def on_step(self, block: int, n: int, metrics: dict[str, Tensor]) -> None:
        if "loss" in metrics:
            self.losses.append(float(metrics["loss"]))
        if "update_error" in metrics:
            self.errors[block, n] = float(metrics["update_error"])

    def on_eval(self, block: int, n: int, split: str, figures: dict[str, float]) -> None:
        pass


def prepared(*overrides: str, optimizer: Sequence[str] = SGD) -> Job:
    return load_job(configured(*SMALL, *PIPEDREAM, *optimizer, "train.log_every=1", *overrides))


def run(job: Job) -> Silent:
    callback = Silent()
    build_engine(job).run(unrecorded(connect(None, 0, 1, timeout=30), callback))
    return callback


class Equation10:
    """AsyncPP's Nesterov, literally: the parameters are ``w_t + d_t``."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, gamma: float) -> None:
        self.parameters, self.lr, self.gamma = list(parameters), lr, gamma
        self.w, self.before = ([p.detach().clone() for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self) -> None:
        for i, p in enumerate(self.parameters):
            assert p.grad is not None
            d = self.gamma * (self.w[i] - self.before[i])
            self.w[i], self.before[i] = self.w[i] + d - self.lr * (1 - self.gamma) * p.grad, self.w[i]
            p.copy_(self.w[i] + self.gamma * (self.w[i] - self.before[i]))


def momentum(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)


def pipedream(job: Job, lag: int, optimizer: Callable[[Iterable[nn.Parameter]], Any] = momentum) -> list[float]:
    """The loop from the definition: at step t every block computes batch t with a copy of the weights that it has, and
    then learns from batch t - lag (N - k), differentiated through the copies that computed it. Returns the losses."""
    assert job.cut is not None
    blocks = split_network(job.network, job.cut)
    N = len(blocks)
    optimizers = [optimizer(f.parameters()) for f in blocks]
    stashes: list[dict[int, nn.Module]] = [{} for _ in blocks]
    gradients: dict[int, list[list[Tensor]]] = {}
    losses = []
    for t in range(STEPS + lag * N):
        if t < STEPS:
            a = job.batches.inputs(t)
            for k, f in enumerate(blocks):
                stashes[k][t] = stash = copy.deepcopy(f)
                a = stash(a)
                for buffer, new in zip(f.buffers(), stash.buffers(), strict=True):
                    buffer.copy_(new)
            loss = F.cross_entropy(a, job.batches.labels(t))
            losses.append(float(loss.detach()))
            parameters = [list(stash[t].parameters()) for stash in stashes]
            flat = iter(torch.autograd.grad(loss, [p for some in parameters for p in some]))
            gradients[t] = [[next(flat) for _ in some] for some in parameters]
        for k, f in enumerate(blocks):
            n = t - lag * (N - 1 - k)
            if 0 <= n < STEPS:
                for p, gradient in zip(f.parameters(), gradients[n][k], strict=True):
                    p.grad = gradient
                optimizers[k].step()
    return losses


@pytest.mark.parametrize(
    ("blocks", "lag", "options"),
    [(1, 2, MLP), (2, 1, MLP), (4, 1, MLP), (4, 2, MLP), (4, 2, (*MLP, "engine.recompute=true")), (3, 2, CNN)],
    ids=["alone", "two blocks", "lag 1", "lag 2", "recomputed", "batch norm"],
)
def test_equals_the_loop_of_stashed_weights_to_the_bit(blocks: int, lag: int, options: tuple[str, ...]) -> None:
    ours, expected = (prepared(*options, f"blocks={blocks}", f"engine.lag={lag}") for _ in range(2))
    assert run(ours).losses == pipedream(expected, lag)
    state = expected.network.state_dict()
    assert state
    for name, value in ours.network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_delay_corrected_nesterov_is_equation_10_on_the_same_gradients() -> None:
    options = ("optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0.9", "optimizer.schedule=constant")
    corrected = (*options, "optimizer.delay_corrected=true")
    ours, expected = (prepared(*MLP, "blocks=4", optimizer=corrected) for _ in range(2))
    losses = pipedream(expected, 2, lambda parameters: Equation10(parameters, lr=0.5, gamma=0.9))
    assert run(ours).losses == pytest.approx(losses, rel=1e-4)
    state = expected.network.state_dict()
    for name, value in ours.network.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5)


def test_in_adams_form_it_is_torchs_nadam_to_the_bit() -> None:
    options = ("optimizer=adamw", "optimizer.lr=0.01", "optimizer.betas=[0.99,0.999]", "optimizer.schedule=constant")
    corrected = (*options, "optimizer.delay_corrected=true")
    ours, expected = (prepared(*MLP, "blocks=4", optimizer=corrected) for _ in range(2))
    losses = pipedream(expected, 2, lambda parameters: torch.optim.NAdam(parameters, lr=0.01, betas=(0.99, 0.999)))
    assert run(ours).losses == losses
    state = expected.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.network.state_dict().items())


def test_only_the_age_of_the_weights_is_an_error() -> None:
    """The first updates of all blocks are those of the weights that all have; later ones of lower blocks are late."""
    errors = run(prepared(*MLP, "blocks=4")).errors
    assert [errors[block, 0] for block in (4,)] == [0]
    assert min(errors[1, n] for n in range(2, STEPS)) > 0.01
    assert max(run(prepared(*MLP, "blocks=1")).errors.values()) == 0


@pytest.mark.parametrize(("ranks", "depth", "lag"), [(2, 1, 2), (3, 4, 1), (4, 1, 1)])
def test_processes_and_delays_change_nothing(pool: Pool, ranks: int, depth: int, lag: int) -> None:
    options = (*PIPEDREAM, "model.dropout=0.2", "model.norm=batch", "model.width=16", f"engine.lag={lag}")
    alone = summary_of(pool, 1, *options)["fingerprint"]
    together = summary_of(pool, ranks, *options, f"engine.depth={depth}", delays=0.01, seed=depth)
    assert together["fingerprint"] == alone


def test_the_lag_and_the_stashes_are_part_of_the_result(pool: Pool) -> None:
    found = {
        summary_of(pool, 1, "algorithm=bp", *options)["fingerprint"]
        for options in (
            ("schedule=pipedream", "engine.lag=1"),
            ("schedule=pipedream", "engine.lag=2"),
            ("schedule=naive", "engine.lag=1"),
            ("schedule=naive", "engine.lag=2"),
        )
    }
    assert len(found) == 4
