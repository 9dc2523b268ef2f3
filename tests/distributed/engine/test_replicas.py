"""Replicas of the pipeline: what copies of a block learn together, for any processes, any timing, any restart."""

import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import counterflow as cf
from counterflow.data.batch_loader import EpochSampler
from counterflow.engine import replica_sync
from counterflow.engine.replica_sync import GradientSync
from counterflow.engine.stage import Stage
from counterflow.models import build_seeded
from counterflow.trainer.job_builder import load_job
from tests.distributed.engine.test_accumulate import data, network, results
from tests.distributed.engine.test_resume import figures, interrupt
from tests.helpers.configs import configured
from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

RULES = {
    "bll": ("algorithm.feedback.refresh=2", "optimizer.average=0.9"),
    "predsim": ("algorithm=predsim", "algorithm.beta=0.5", "train.accumulate=2"),
    "al": ("algorithm=al", "algorithm.dim=12"),
    "muon": ("optimizer=muon", "optimizer.clip=1"),
}
PARAMETERS = (
    "sync.mode=parameters",
    "sync.every=4",
    "sync.delay=3",
    "sync.outer_lr=0.7",
    "sync.outer_momentum=0.9",
    "optimizer.average=0",
)
NETWORK = ("model=mlp", "model.width=24", "model.hidden=3", "model.dropout=0.2", "model.norm=batch", "blocks=3")
LENGTH = ("train.batch_size=24", "train.steps=13", "data.validation=0.1", "train.evaluate_every=5")
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(pool: Pool) -> Run:
    """The summary of a small run whose dropout and batch norm see shards."""

    def summary(rule: str, ranks: int, *more: str, **how: Any) -> dict[str, Any]:
        return summary_of(pool, ranks, *NETWORK, *LENGTH, *RULES[rule], "replicas=2", *more, **how)

    return cache(summary)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("rule", RULES)
def test_processes_change_nothing(run: Run, rule: str, ranks: int) -> None:
    assert results(run(rule, ranks)) == results(run(rule, 1))
    assert run(rule, 1)["replicas"] == 2


@pytest.mark.parametrize("inner", ["pipeline", "replicas"])
@pytest.mark.parametrize("rule", ["bll", "al"])
def test_processes_change_nothing_where_copies_learn_alone(run: Run, rule: str, inner: str) -> None:
    whole = run(rule, 1, *PARAMETERS)
    assert results(run(rule, 3, *PARAMETERS, f"topology.inner={inner}")) == results(whole)
    assert whole["fingerprint"] != run(rule, 1)["fingerprint"]


def test_timing_changes_nothing(run: Run) -> None:
    for more in ((), PARAMETERS):
        assert results(run("bll", 4, *more, delays=0.01, seed=3)) == results(run("bll", 1, *more))


def test_three_replicas(pool: Pool) -> None:
    options = (*NETWORK, *LENGTH, "replicas=3", "topology.inner=replicas", "train.steps=7")
    assert results(summary_of(pool, 4, *options)) == results(summary_of(pool, 1, *options))


@pytest.mark.parametrize("rule", ["bll", "al"])
def test_blocks_are_measured_on_a_share_of_a_batch(pool: Pool, rule: str) -> None:
    options = (*NETWORK, "train.batch_size=24", "train.steps=2", *RULES[rule], "replicas=2", "model.cut=profile")
    assert sum(summary_of(pool, 1, *options)["cut"]) == 4


@pytest.mark.parametrize("ranks", [(4, 1), (1, 3)])
@pytest.mark.parametrize("more", [(), PARAMETERS], ids=["gradients", "parameters"])
@pytest.mark.parametrize("rule", ["bll", "al"])
def test_a_run_that_goes_on_ends_with_the_same_bits(
    run: Run, tmp_path: Path, rule: str, more: tuple[str, ...], ranks: tuple[int, int]
) -> None:
    """From checkpoints before a meeting, while slices travel, while sums travel, and after."""
    often = (*more, "checkpoint.every=1", "checkpoint.keep=99", "train.log_every=1")
    before, after = ranks
    whole = run(rule, before, *often, directory=tmp_path / "whole")
    for batches in (4, 5, 6, 7, 8) if rule == "bll" and more else (6,):
        broken = tmp_path / f"broken-{batches}"
        shutil.copytree(tmp_path / "whole", broken)
        interrupt(broken, batches)
        again = run(rule, after, *often, directory=broken)
        assert again["resumed_after"] == batches
        assert results(again) == results(whole)
        assert figures(broken) == figures(tmp_path / "whole")


@pytest.mark.parametrize("rule", [cf.BLL(), cf.PredSim(beta=0.0), cf.AL(dim=12)], ids=["bll", "predsim", "al"])
def test_copies_learn_as_one_pipeline_does(rule: Any) -> None:
    """By the mean of their gradients, up to rounding, without batch norm and dropout."""

    def weights(replicas: int) -> dict[str, Tensor]:
        trainer = cf.Trainer(network, rule=rule, optimizer=cf.SGD(lr=0.05, momentum=0.9), blocks=4, replicas=replicas)
        return trainer.fit(data(96), epochs=3, batch_size=24).state_dict()

    whole, shared = weights(1), weights(3)
    for name, value in whole.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5, msg=name)


def batches(count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of ``data`` under seed 1, as the trainer orders them."""
    inputs, labels = data(96).tensors
    order = EpochSampler(96, size, 1)
    return [(inputs[rows], labels[rows]) for rows in map(order.indices, range(count))]


def test_gradients_are_the_loop_of_the_equations() -> None:
    """One block, whose rule is cross entropy at the top: the mean of the copies' gradients, summed in their order."""
    trainer = cf.Trainer(
        network, rule=cf.PredSim(beta=0.0), optimizer=cf.SGD(lr=0.1, momentum=0.5), blocks=1, replicas=3
    )
    state = trainer.fit(data(96), steps=5, batch_size=24, epochs=9).state_dict()
    model = build_seeded(network, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, fused=True)
    for n, (x, y) in enumerate(batches(5, 24)):
        gradients = []
        for inputs, labels in zip(x.chunk(3), y.chunk(3), strict=True):
            loss = F.cross_entropy(model(inputs), labels)
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        for parameter, (first, second, third) in zip(model.parameters(), zip(*gradients, strict=True), strict=True):
            parameter.grad = ((first + second) + third) / 3
        optimizer.param_groups[0]["lr"] = cosine(0.1, n, 5)
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name


def cosine(rate: float, n: int, steps: int) -> float:
    return rate * (0.5 * (1.0 + math.cos(math.pi * n / steps)))


def test_parameters_are_the_loop_of_the_equations() -> None:
    """DiLoCo's algorithm 1, with a mean that takes effect a batch late; the last one at once."""
    sync = cf.SyncConfig(mode="parameters", every=3, delay=1, outer_lr=0.5, outer_momentum=0.8)
    trainer = cf.Trainer(
        network, rule=cf.PredSim(beta=0.0), optimizer=cf.SGD(lr=0.1, momentum=0.5), blocks=1, replicas=2, sync=sync
    )
    state = trainer.fit(data(96), steps=8, batch_size=24, epochs=9).state_dict()
    copies = [build_seeded(network, 1), build_seeded(network, 1)]
    optimizers = [torch.optim.SGD(c.parameters(), lr=0.1, momentum=0.5, fused=True) for c in copies]
    outer = [p.detach().clone() for p in copies[0].parameters()]
    speed = [torch.zeros_like(p) for p in outer]
    brought: list[list[Tensor]] = []

    def meet() -> None:
        brought[:] = [[p.detach().clone() for p in c.parameters()] for c in copies]

    def learn() -> None:
        for i, (mine, theirs) in enumerate(zip(*brought, strict=True)):
            away = outer[i] - (mine + theirs) / 2
            speed[i] = 0.8 * speed[i] + away
            outer[i] = outer[i] - 0.5 * (away + 0.8 * speed[i])
            for then, current in zip(brought, copies, strict=True):
                parameter = list(current.parameters())[i]
                moved = parameter + (outer[i] - then[i])
                with torch.no_grad():
                    parameter.copy_(torch.where(parameter == then[i], outer[i], moved))

    for n, (x, y) in enumerate(batches(8, 24)):
        for c, optimizer, inputs, labels in zip(copies, optimizers, x.chunk(2), y.chunk(2), strict=True):
            optimizer.param_groups[0]["lr"] = cosine(0.1, n, 8)
            optimizer.zero_grad()
            F.cross_entropy(c(inputs), labels).backward()
            optimizer.step()
        if n in (3, 6):
            learn()
        if n in (2, 5, 7):
            meet()
        if n == 7:
            learn()
    for (name, value), expected in zip(state.items(), outer, strict=True):
        assert torch.equal(value, expected), name


def test_buckets_leave_during_the_backward_pass_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def weights(numbers: int) -> dict[str, Tensor]:
        monkeypatch.setattr(replica_sync, "BUCKET", numbers)
        trainer = cf.Trainer(network, blocks=2, replicas=2, optimizer=cf.Muon())
        return trainer.fit(data(48), batch_size=24, accumulate=2).state_dict()

    whole = weights(10**6)
    send, scatter = Stage._send_bucket, GradientSync.scatter
    monkeypatch.setattr(Stage, "_send_bucket", lambda *a: (order.append(str(a[2])), send(*a))[1])
    monkeypatch.setattr(GradientSync, "scatter", lambda *a: (order.append("scatter"), scatter(*a))[1])
    small = weights(100)
    assert all(torch.equal(small[name], value) for name, value in whole.items())
    assert order.index("scatter") >= 4, "some leave before"
    assert order[: order.index("scatter")].count("0") == 4, "the first buckets of two blocks in two replicas"


def test_buckets_between_processes(pool: Pool) -> None:
    wide = ("model=mlp", "model.width=1100", "model.hidden=2", "blocks=1", "train.steps=2", "train.evaluate_every=0")
    assert results(summary_of(pool, 2, *wide, "replicas=2")) == results(summary_of(pool, 1, *wide, "replicas=2"))


class Forgetful(cf.LocalRule):
    """Cross entropy at the top, and a buffer that nobody is told of."""

    def __init__(self, context: cf.BlockContext, twice: bool = False, named: bool = False) -> None:
        super().__init__()
        self.block = context.module
        self._optimizer = context.optimizer(self.block.parameters())
        self._twice, self._named = twice, named
        self.register_buffer("largest", torch.zeros(1))
        self._output = torch.empty(0)

    def running_buffers(self) -> list[Tensor]:
        return [self.get_buffer("largest")] if self._named else []

    def forward_message(self, message: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._output = self.block(message[0])
        return (self._output.detach(),)

    def update(self, part: cf.BatchPart, message: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> dict[str, Tensor]:
        loss = F.cross_entropy(self._output, target[0])
        self.get_buffer("largest").copy_(loss.detach().maximum(self.get_buffer("largest")))
        self._optimizer.backward_and_step(loss, part)
        if self._twice:
            self._optimizer.step(part.n)
        return {"loss": loss.detach()}

    def predict(
        self, message: tuple[Tensor, ...], target: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], cf.Prediction | None]:
        return (output := self.block(message[0]),), cf.Prediction.of(output)


def test_a_buffer_that_copies_do_not_share_is_found() -> None:
    def fit(**options: bool) -> None:
        cf.Trainer(network, rule=cf.PerBlock(Forgetful, **options), blocks=1, replicas=2).fit(data(24), batch_size=8)

    fit(named=True)
    with pytest.raises(cf.BlockError, match=r"^block 1 of replica 1: has other .*running_buffers must name every"):
        fit()
    with pytest.raises(cf.BlockError, match=r"^rank 0: block 1: learn of batch 0: .*steps twice in a batch"):
        fit(named=True, twice=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("replicas=3",), "replicas=3: with train.accumulate=1, must divide train.batch_size=32"),
        (("replicas=2", "train.accumulate=32"), "replicas=2: with train.accumulate=32, must divide"),
        (("replicas=0",), "replicas=0: must be"),
        (("replicas=2", "algorithm=bp"), "replicas=2: allowed for algorithm=bp is 1"),
        (("replicas=2", "engine.lag=exact"), "engine.lag=exact: is for replicas=1"),
        (("sync.mode=parameters",), "sync.mode=parameters: has no effect without replicas of at least 2"),
        (("replicas=2", "sync.every=2"), "sync.every=2: allowed for sync.mode=gradients is 1"),
        (("replicas=2", "sync.mode=parameters", "sync.delay=1"), "sync.delay=1: must be less than sync.every=1"),
        (
            ("replicas=2", "sync.mode=parameters", "optimizer.average=0.9"),
            "optimizer.average=0.9: allowed for sync.mode=parameters is 0",
        ),
        (("replicas=2", "topology.inner=blocks"), "topology.inner=blocks: allowed are pipeline, replicas"),
    ],
)
def test_what_does_not_fit_is_one_line(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        load_job(configured(*options))
