"""The fast network: what block 1 takes from training samples depends on no placement, seed or restart."""

import pytest
import torch

import counterflow as cf
from counterflow.config import AlgorithmConfig, FastCNNConfig
from counterflow.data.dataset import Dataset, Split
from counterflow.models.whitening import Whitening
from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

SMALL = ("model=fastcnn", "model.widths=[6,8,8]", "optimizer=sgd", "blocks=3")
RULES = {
    "bll": ("algorithm.head.width=4",),
    "predsim": ("algorithm=predsim", "algorithm.head.width=4"),
    "naive": ("algorithm=bp", "schedule=naive"),
}
FLIPS = ("data.augment=true", "data.pad=reflect", "data.alternate=true")


@pytest.mark.parametrize(("rule", "ranks"), [("bll", 3), ("predsim", 2), ("naive", 3)])
def test_processes_change_nothing(pool: Pool, rule: str, ranks: int) -> None:
    alone, together = (summary_of(pool, count, *SMALL, *RULES[rule], *FLIPS) for count in (1, ranks))
    assert together["fingerprint"] == alone["fingerprint"]


@pytest.mark.parametrize(
    ("rule", "schedule", "seed"),
    [(cf.BLL(), "auto", 1), (cf.BLL(), "auto", 2), (cf.Backprop(), "1f1b", 1), (cf.FeedbackAlignment(), "auto", 1)],
)
def test_a_trainer_whitens_with_the_first_training_samples(rule: AlgorithmConfig, schedule: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5100, 1, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (5100,), generator=generator)
    trainer = cf.Trainer(FastCNNConfig(widths=[4, 4]), rule=rule, blocks=2, seed=seed, schedule=schedule)
    result = trainer.fit((images, labels), (images[:8], labels[:8]), steps=1, augment=True)
    expected = Whitening(1)
    split = Split(images, labels)
    expected.initialize(Dataset(split, split, 3).normalised(images[:5000]))
    assert torch.equal(result.state_dict()["0.0.weight"], expected.weight)
