"""Every model and latent head really runs on several processes."""

import pytest

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of


def test_resnet18_in_eight_blocks(pool: Pool) -> None:
    narrow = ("model=resnet18", "model.width=16", "algorithm.head.width=16", "blocks=8")
    overrides = (*narrow, "train.steps=2", "train.batch_size=16", "train.evaluate_every=0")
    alone, together = (summary_of(pool, ranks, *overrides) for ranks in (1, 3))
    assert together["fingerprint"] == alone["fingerprint"]
    assert sum(together["cut"]) == 10
    assert len(together["block_accuracy"]) == 8


def test_a_profiled_cut_is_one_for_all_ranks_and_can_be_repeated(pool: Pool) -> None:
    profiled = summary_of(pool, 3, "model.cut=profile", "train.evaluate_every=0")
    assert len(profiled["cut"]) == 4
    assert sum(profiled["cut"]) == 5
    repeated = summary_of(pool, 2, f"model.cut={profiled['cut']}", "train.evaluate_every=0")
    assert repeated["fingerprint"] == profiled["fingerprint"]


@pytest.mark.parametrize(
    ("family", "kind"), [("gaussian", "linear"), ("bernoulli", "linear"), ("bernoulli", "mlp"), ("categorical", "mlp")]
)  # the default, gaussian and mlp, learns in many other tests
def test_every_family_and_feedback_learns(pool: Pool, family: str, kind: str) -> None:
    options = (f"algorithm.latent.family={family}", f"algorithm.feedback.kind={kind}")
    summary = summary_of(pool, 2, *options, "train.steps=66", "train.evaluate_every=0")
    assert min(summary["block_accuracy"]) > 0.8


@pytest.mark.parametrize("head", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_latent_head_learns(pool: Pool, head: int) -> None:
    options = ("model=cnn", "model.channels=[8,16,16,16]", "model.strides=[1,1,2,1]")
    latent = (f"algorithm.head.convolutions={head}", "algorithm.head.width=16")
    length = ("train.steps=88", "optimizer.lr=0.003", "train.evaluate_every=0")
    summary = summary_of(pool, 2, *options, *latent, *length)
    *hidden, top = summary["block_accuracy"]
    assert min(hidden) > 0.7  # these use the head
    assert top > 0.5


# the default, adamw and cosine, learns in many other tests
@pytest.mark.parametrize(("optimizer", "schedule"), [("sgd", "constant"), ("adamw", "linear")])
def test_every_optimizer_and_schedule_learns(pool: Pool, optimizer: str, schedule: str) -> None:
    options = (f"optimizer={optimizer}", f"optimizer.schedule={schedule}", "optimizer.warmup=10")
    assert summary_of(pool, 2, *options, "train.steps=132", "train.evaluate_every=0")["test_accuracy"] > 0.85
