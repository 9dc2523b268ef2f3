"""The fast network and its recipe: placement changes no bit, and block 1 starts from the same samples for any seed."""

import pytest
import torch

import counterflow as cf
from counterflow.config import AlgorithmConfig, FastCNNConfig
from counterflow.data.dataset import Dataset, Split
from counterflow.models.whitening import Whitening
from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

SMALL = ("model=fastcnn", "model.widths=[6,8,8]", "blocks=3")
RULES = {
    "bll": ("algorithm.head.width=4", "algorithm.smoothing=0.1"),
    "predsim": ("algorithm=predsim", "algorithm.head.width=4", "algorithm.smoothing=0.1", "algorithm.similarity=layer"),
    "al": ("algorithm=al", "algorithm.head.width=4", "algorithm.target_lr_scale=0.1"),
    "naive": ("algorithm=bp", "algorithm.smoothing=0.1", "schedule=naive"),
    "pipedream": ("algorithm=bp", "algorithm.smoothing=0.1", "schedule=pipedream"),
}
RECIPE = (
    "data.augment=true", "data.pad=reflect", "data.alternate=true", "data.test_views=2", "optimizer=muon",
    "optimizer.bias_lr_scale=4", "optimizer.bias_decay=false", "optimizer.average=0.9",
)  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "ranks"), [("bll", 2), ("bll", 3), ("predsim", 2), ("al", 3), ("naive", 3), ("pipedream", 2)]
)
def test_processes_change_nothing(pool: Pool, rule: str, ranks: int) -> None:
    alone, together = (summary_of(pool, count, *SMALL, *RULES[rule], *RECIPE) for count in (1, ranks))
    for key in ("fingerprint", "test_accuracy", "block_tta_accuracy"):
        assert together[key] == alone[key]


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
