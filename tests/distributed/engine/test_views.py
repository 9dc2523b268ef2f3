"""Test-time augmentation: the accuracy of averaged scores, with any rule, on any number of ranks."""

import pytest
import torch

import counterflow as cf
from counterflow.config import MLPConfig
from counterflow.models import build
from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

VIEWS = ("data.test_views=6", "data.validation=0.1", "blocks=3", "model.width=16", "model.hidden=2")
RULES = {
    "bll": (),
    "al": ("algorithm=al",),
    "naive": ("algorithm=bp", "schedule=naive"),
    "gpipe": ("algorithm=bp", "schedule=gpipe"),
}
ACCURACIES = (
    "fingerprint", "test_accuracy", "block_accuracy", "validation_accuracy", "test_tta_accuracy", "block_tta_accuracy",
    "validation_tta_accuracy",
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_ranks_change_nothing_and_views_leave_training_alone(pool: Pool, rule: str) -> None:
    few = 2 if rule == "gpipe" else 1  # one rank takes whole batches, a pipeline micro-batches
    alone, together = (summary_of(pool, ranks, *VIEWS, *RULES[rule]) for ranks in (few, 3))
    assert {key: together[key] for key in ACCURACIES} == {key: alone[key] for key in ACCURACIES}
    plain = summary_of(pool, few, *VIEWS, *RULES[rule], "data.test_views=1")
    for key in ACCURACIES[:4]:
        assert plain[key] == alone[key]
    assert plain["test_tta_accuracy"] is None
    assert 0 < alone["test_tta_accuracy"] < 1
    assert [accuracy is None for accuracy in alone["block_tta_accuracy"]] == [
        accuracy is None for accuracy in alone["block_accuracy"]
    ]


def test_the_accuracy_is_that_of_the_average_by_hand() -> None:
    images = torch.randint(256, (96, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0, :, :2].float().mean((1, 2)) > 127).long() + (images[:, 0, 0].float().mean(1) > 127).long()
    trainer = cf.Trainer(MLPConfig(width=16, hidden=1), rule=cf.Backprop(), blocks=1, seed=1)
    result = trainer.fit((images[:64], labels[:64]), (images[64:], labels[64:]), steps=8, batch_size=16, test_views=2)
    network = build(MLPConfig(width=16, hidden=1), (1, 6, 6), 3, seed=1)
    network.load_state_dict(result.state_dict())
    network.eval()
    mean, std = images[:64].float().mean(), images[:64].float().std(correction=0)
    test = (images[64:].float() - mean) / std
    with torch.no_grad():
        scores = network(test) + network(test.flip(3))
    expected = (scores.argmax(1) == labels[64:]).double().mean().item()
    assert result.summary["test_tta_accuracy"] == pytest.approx(expected)
