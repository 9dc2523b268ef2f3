import torch
import torch.nn.functional as F
from torch import nn

from counterflow.algorithms.bll import posterior
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.predsim import PredSim
from counterflow.algorithms.rule import RuleContext, Task
from counterflow.algorithms.stale_gradient import StaleGradient
from counterflow.config import SGD


def test_the_posterior_with_smoothed_labels_adds_the_gradient_of_the_smoothed_likelihood() -> None:
    u, codes = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 2])
    likelihood = -F.cross_entropy(u @ codes.T, labels, reduction="sum", label_smoothing=0.2)
    (gradient,) = torch.autograd.grad(likelihood, u)
    torch.testing.assert_close(posterior(u, codes, labels, 0.2), u + gradient)


def test_the_top_blocks_learn_the_smoothed_cross_entropy_and_report_the_plain_one() -> None:
    x, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    optimizer = SGD(lr=1.0, momentum=0.0, schedule="constant")
    for name in ("predsim", "naive"):
        layer = nn.Linear(4, 3)
        context = RuleContext([layer], [(3,)], Task((4,), 3), optimizer, 10, 1)
        plain = F.cross_entropy(layer(x), labels)
        smoothed = F.cross_entropy(layer(x), labels, label_smoothing=0.2)
        (gradient,) = torch.autograd.grad(smoothed, layer.weight)
        before = layer.weight.detach().clone()
        if name == "predsim":
            rule = PredSim(smoothing=0.2).rule_set(context).rule(1)
            rule.forward_message((x,))
            found = rule.update(BatchPart(0), (x,), (labels,))["nll"]
        else:
            rule = StaleGradient(context, lambda n, block: None, 0.2).rule(1)
            found = rule.backward(BatchPart(0), (x.clone(),), (labels,))[1]["loss"]
        torch.testing.assert_close(found, plain.detach())
        torch.testing.assert_close(layer.weight.detach(), before - gradient)
