"""Block-local learning (Kappel et al., arXiv 2305.14974; docs/architecture.md, Mathematics)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.families import Family, Gaussian, family
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import (
    BlockContext,
    LocalAlgorithm,
    LocalRule,
    MessageSpec,
    Metrics,
    Payload,
    Prediction,
    RuleContext,
    RuleSet,
    Target,
)
from counterflow.config import FeedbackConfig, HeadConfig, LatentConfig
from counterflow.models.feedback import Feedback
from counterflow.models.head import Head


@dataclass(kw_only=True)
class BLL(LocalAlgorithm):
    """Block-local learning: code books come down, and every block learns from the posterior over its latent."""

    name: str = "bll"
    head: HeadConfig = field(default_factory=HeadConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)

    def rule_set(self, context: RuleContext) -> RuleSet:
        return BLLRules(self, context)


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
        self, context: BlockContext, config: BLL, latent: Family, head: nn.Module, feedback: Feedback | None
    ) -> None:
        """``feedback`` is None in the bottom block: nothing learns from a target for the input."""
        super().__init__()
        self.block = context.module
        self.head = head
        self.feedback = feedback
        self.codes: Tensor | None
        # The book that stands until a message brings another one: the top's, and no other block's.
        self.register_buffer("codes", torch.eye(context.classes) if context.is_top else None)
        self._family = latent
        self._refresh = config.feedback.refresh
        self._theta = context.optimizer([*self.block.parameters(), *head.parameters()])
        self._phi = context.optimizer(feedback.parameters(), config.feedback.lr_scale) if feedback is not None else None
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

    def update(self, part: BatchPart, message: Payload, target: Target) -> Metrics:
        assert self._u is not None, "an update follows a forward pass"
        codes, labels = target[0], target[1].flatten()
        u = self._u.flatten(0, -2)
        self._u = None
        with torch.no_grad():
            rho = posterior(u, codes, labels)
            logits = u @ codes.T
        loss = self._family.kl(rho, u).mean()
        self._theta.backward_and_step(loss, part)
        metrics = {
            "loss": loss.detach(),
            "nll": F.cross_entropy(logits, labels),
            "accuracy": (logits.argmax(-1) == labels).float().mean(),
        }
        if self.feedback is not None and self._phi is not None:
            below = message[1].flatten(0, -2)
            feedback_loss = F.cross_entropy(below @ self.feedback(codes).T, labels)
            self._phi.backward_and_step(feedback_loss, part)
            metrics["feedback_loss"] = feedback_loss.detach()
        return metrics

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Prediction]:
        a = self.block(message[0])
        return (a,), Prediction.of(self.head(a) @ target[0].T)


class BLLRules(RuleSet):
    def __init__(self, config: BLL, context: RuleContext) -> None:
        super().__init__(context)
        self.config = config
        latent = config.latent
        self._multiple = latent.categories if latent.family == "categorical" else 1
        with torch.device("meta"):
            heads = [Head(shape, config.head) for shape in self.shapes[:-1]]
        self._dims = [head.dim for head in heads] + [self.task.classes]
        for dim in self._dims[:-1]:
            if dim % self._multiple:
                raise ValueError(
                    f"algorithm.latent.categories={self._multiple}: must divide {dim}, the dimensions of a block's "
                    "latent"
                )

    def rule(self, block: int) -> LocalRule:
        config, context = self.config, self.context.block(block)
        with self.seeded(config.name, block):
            head = nn.Identity() if context.is_top else Head(context.shape, config.head)
            above, below = self._dims[block - 1], self._dims[block - 2]
            feedback = None if context.is_bottom else Feedback(above, below, config.feedback)
        latent = Gaussian() if context.is_top else family(config.latent.family, self._multiple)
        return BLLRule(context, config, latent, head, feedback)

    def activation(self, block: int, batch: int) -> MessageSpec:
        a = (batch, *self.shapes[block - 1])
        u = (batch, *self.task.label_shape, self._dims[block - 1])
        return (a, torch.float32), (u, torch.float32)

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        labels = ((batch, *self.task.label_shape), torch.int64)
        book = ((self.task.classes, self._dims[block - 1]), torch.float32)
        return (book, labels) if n % self.config.feedback.refresh == 0 else (labels,)

    def summarize(self, metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The free energy ``F = -log p(y|x) + (1/N) sum_k KL_k``."""
        return {"free_energy": metrics[-1]["nll"] + sum(block["loss"] for block in metrics) / len(metrics)}
