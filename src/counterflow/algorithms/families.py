"""Exponential families of a block's latent, in closed form over natural parameters ``[..., d]``.

Each has a log normaliser ``A(u)``; the mean map is its gradient, and ``KL(r || u) = <mu(r), r - u> - A(r) + A(u)``.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


class Family(ABC):
    @abstractmethod
    def mean(self, natural: Tensor) -> Tensor:
        """The mean parameters ``mu(u)``, ``[..., d]``."""

    @abstractmethod
    def kl(self, r: Tensor, u: Tensor) -> Tensor:
        """``KL(p_r || p_u)``, summed over the ``d`` dimensions: ``[...]``."""


class Gaussian(Family):
    """Independent unit-variance Gaussians; the natural parameter is the mean."""

    def mean(self, natural: Tensor) -> Tensor:
        return natural

    def kl(self, r: Tensor, u: Tensor) -> Tensor:
        return 0.5 * (r - u).square().sum(-1)


class Bernoulli(Family):
    """Independent Bernoulli variables; the natural parameter is the logit."""

    def mean(self, natural: Tensor) -> Tensor:
        return torch.sigmoid(natural)

    def kl(self, r: Tensor, u: Tensor) -> Tensor:
        return (torch.sigmoid(r) * (r - u) - F.softplus(r) + F.softplus(u)).sum(-1)


class Categorical(Family):
    """Independent categorical variables of ``categories`` values each; the natural parameters are their logits."""

    def __init__(self, categories: int) -> None:
        self.categories = categories

    def _variables(self, natural: Tensor) -> Tensor:
        return natural.reshape(*natural.shape[:-1], -1, self.categories)

    def mean(self, natural: Tensor) -> Tensor:
        return self._variables(natural).softmax(-1).flatten(-2)

    def kl(self, r: Tensor, u: Tensor) -> Tensor:
        log_r, log_u = self._variables(r).log_softmax(-1), self._variables(u).log_softmax(-1)
        return (log_r.exp() * (log_r - log_u)).flatten(-2).sum(-1)


def family(name: str, categories: int) -> Family:
    """The family ``algorithm.latent.family`` of the configuration."""
    return {"gaussian": Gaussian(), "bernoulli": Bernoulli(), "categorical": Categorical(categories)}[name]
