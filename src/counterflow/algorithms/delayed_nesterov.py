"""Nesterov's method as a correction of late gradients (AsyncPP: Ajanthan et al., ICML 2025, arXiv 2505.01099)."""

from collections.abc import Iterable
from typing import Any

import torch


class DelayedNesterov(torch.optim.Optimizer):
    """Equation 10 of AsyncPP. With the rate ``eta`` and the momentum ``gamma``, whose value there is 0.99,

        d_t     = gamma (w_t - w_{t-1})
        w_{t+1} = w_t + d_t - eta (1 - gamma) grad f(w_{t-tau} + d_{t-tau})

    The parameters hold the point ``w_t + d_t`` that the block computes and is evaluated with, and ``tau`` is whatever
    delay the gradient has. The factor ``1 - gamma`` is what Nesterov's own method (equation 8) has not: by it the steps
    turn slowly, so that ``d_t`` points to where the weights went in the meantime (proposition 1).

    At a constant rate this is torch's ``SGD(nesterov=True)`` at ``1 - gamma`` times the rate; where the rate changes,
    steps that were taken keep theirs. Weight decay adds ``weight_decay`` times the parameters to the gradient, as in
    torch's SGD.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        """Each group names its parameters (``params``) and its ``weight_decay``."""
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            gamma, discounted = group["momentum"], group["lr"] * (1 - group["momentum"])
            for ahead in (p for p in group["params"] if p.grad is not None):
                gradient = ahead.grad.add(ahead, alpha=group["weight_decay"])
                state = self.state[ahead]
                if not state:
                    state["difference"] = torch.zeros_like(ahead)  # w_t - w_{t-1}
                difference = state["difference"].mul_(gamma).add_(gradient, alpha=-discounted)
                ahead.add_(gradient, alpha=-discounted).add_(difference, alpha=gamma)
