"""Block-local learning (Kappel et al., arXiv 2305.14974; section 3.1 of the design)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.families import Family, Gaussian, family
from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.rule import Algorithm, LocalRule, MessageSpec, Metrics, Payload, Target
from counterflow.config import AlgorithmConfig, FeedbackConfig, LatentConfig
from counterflow.models.feedback import Feedback
from counterflow.models.head import LatentHead


@dataclass(kw_only=True)
class BLLConfig(AlgorithmConfig):
    name: str = "bll"
    latent: LatentConfig = field(default_factory=LatentConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)


def posterior(u: Tensor, codes: Tensor, labels: Tensor) -> Tensor:
    """Natural parameters of ``rho ~ alpha beta``: ``r = u + b(y) - E_{c ~ q(c|u)} b(c)``.

    ``u`` is ``[B, d]``, ``codes`` ``[C, d]``, ``labels`` ``[B]``. The conjugate-computation step: the natural parameter
    of the forward message plus the gradient of the log likelihood ``log q(y | u)``.
    """
    return u + codes[labels] - (u @ codes.T).softmax(-1) @ codes


class BLLRule(LocalRule):
    """Block pair of BLL. Up goes ``(a_k, u_k)``, down comes ``(b_k, labels)``.

    ``u_k`` travels with ``a_k`` because the block above learns its feedback on it, and the head that makes it is here.
    The top block's book is the one-hot code: ``u_N`` are the logits, and the loss has cross entropy's gradient.
    """

    def __init__(
        self,
        block: nn.Module,
        head: nn.Module,
        feedback: Feedback | None,
        codes: Tensor | None,
        latent: Family,
        refresh: int,
        theta: BlockOptimizer,
        phi: BlockOptimizer | None,
    ) -> None:
        """``feedback`` and ``phi`` are None in the bottom block: nothing learns from a target for the input.

        ``codes`` is the book that stands until a message brings another one: the top's, and no other block's.
        """
        super().__init__()
        self.block = block
        self.head = head
        self.feedback = feedback
        self.codes: Tensor | None
        self.register_buffer("codes", codes)
        self._family = latent
        self._refresh = refresh
        self._theta = theta
        self._phi = phi
        self._u: Tensor | None = None

    def receive_target(self, n: int, message: Payload) -> Target:
        *book, labels = message
        if book:
            (self.codes,) = book
        assert self.codes is not None, "the first target message brings a code book"
        return self.codes, labels

    @torch.no_grad()
    def make_target(self, n: int, target: Target) -> Payload:
        codes, labels = target
        assert self.feedback is not None, "nothing is below the bottom block"
        return (self.feedback(codes), labels) if n % self._refresh == 0 else (labels,)

    def forward_message(self, message: Payload) -> Payload:
        a = self.block(message[0])
        self._u = self.head(a)
        return a.detach(), self._u.detach()

    def update(self, n: int, message: Payload, target: Target) -> Metrics:
        assert self._u is not None, "learn follows ascend"
        codes, labels = target[0], target[1].flatten()
        u = self._u.flatten(0, -2)
        self._u = None
        with torch.no_grad():
            rho = posterior(u, codes, labels)
            logits = u @ codes.T
        loss = self._family.kl(rho, u).mean()
        self._theta.backward_and_step(loss, n)
        metrics = {
            "loss": loss.detach(),
            "nll": F.cross_entropy(logits, labels),
            "accuracy": (logits.argmax(-1) == labels).float().mean(),
        }
        if self.feedback is not None and self._phi is not None:
            below = message[1].flatten(0, -2)
            feedback_loss = F.cross_entropy(below @ self.feedback(codes).T, labels)
            self._phi.backward_and_step(feedback_loss, n)
            metrics["feedback_loss"] = feedback_loss.detach()
        return metrics

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Tensor]:
        a = self.block(message[0])
        return (a,), (self.head(a) @ target[0].T).argmax(-1)

    @property
    def inference_modules(self) -> Sequence[nn.Module]:
        return (self.block,)


class BLL(Algorithm):
    Config = BLLConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        latent = self.config.latent
        self._multiple = latent.categories if latent.family == "categorical" else 1
        with torch.device("meta"):
            heads = [LatentHead(shape, latent, self._multiple) for shape in self.shapes[:-1]]
        self._dims = [head.dim for head in heads] + [self.task.classes]

    def rule(self, block: int) -> LocalRule:
        config, top = self.config, block == len(self.blocks)
        forward = self.blocks[block - 1]
        with self.seeded(block):
            head = nn.Identity() if top else LatentHead(self.shapes[block - 1], config.latent, self._multiple)
            above, below = self._dims[block - 1], self._dims[block - 2]
            feedback = Feedback(above, below, config.feedback) if block > 1 else None
        return BLLRule(
            forward,
            head,
            feedback,
            torch.eye(self.task.classes) if top else None,
            Gaussian() if top else family(config.latent.family, self._multiple),
            config.feedback.refresh,
            self._optimizer_of(forward, head),
            self._optimizer_of(feedback, scale=config.feedback.lr_scale) if feedback is not None else None,
        )

    def _optimizer_of(self, *modules: nn.Module, scale: float = 1.0) -> BlockOptimizer:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return BlockOptimizer(parameters, self.optimizer, self.batches, scale)

    def activation(self, block: int, batch: int) -> MessageSpec:
        a = (batch, *self.shapes[block - 1])
        u = (batch, *self.task.label_shape, self._dims[block - 1])
        return (a, torch.float32), (u, torch.float32)

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        labels = ((batch, *self.task.label_shape), torch.int64)
        book = ((self.task.classes, self._dims[block - 1]), torch.float32)
        return (book, labels) if n % self.config.feedback.refresh == 0 else (labels,)

    def summarize(self, figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The free energy ``F = -log p(y|x) + (1/N) sum_k KL_k``."""
        return {"free_energy": figures[-1]["nll"] + sum(block["loss"] for block in figures) / len(figures)}
