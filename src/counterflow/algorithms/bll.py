"""Block-local learning (Kappel et al., arXiv 2305.14974; docs/rules/bll.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.chunked_loss import SplitTop, is_chunked, mean_of_rows
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
from counterflow.config.validators import checked, fraction
from counterflow.models.head import Head

_MOST_CLASSES = 1 << 15
"""Codes of the largest book."""


@dataclass(kw_only=True)
class BLL(LocalAlgorithm):
    """Block-local learning: code books come down, and every block learns from the posterior over its latent."""

    name: str = "bll"
    smoothing: float = checked(0.0, fraction)
    """Label smoothing of the posterior and of the feedback's loss; the reported ``nll`` is without it."""
    head: HeadConfig = field(default_factory=HeadConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)

    def rule_set(self, context: RuleContext) -> RuleSet:
        return BLLRules(self, context)


def posterior(u: Tensor, codes: Tensor | None, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Natural parameters of ``rho ~ alpha beta``: ``r = u + b(y) - E_{c ~ q(c|u)} b(c)``.

    ``u`` is ``[B, d]``, ``codes`` ``[C, d]``, or None for one-hot codes, and ``labels`` ``[B]``. The
    conjugate-computation step: the natural parameter of the forward message plus the gradient of the log likelihood
    ``log q(y | u)``.
    With ``smoothing``, of its mean under smoothed labels: ``b(y)`` moves by this share to the mean code.
    """
    return _posterior(u, scores(u, codes), codes, labels, smoothing)


def scores(u: Tensor, codes: Tensor | None) -> Tensor:
    """``log q(c | u)`` up to a constant, ``[B, C]``, of codes as `posterior` takes them."""
    return u if codes is None else u @ codes.T


def _posterior(u: Tensor, logits: Tensor, codes: Tensor | None, labels: Tensor, smoothing: float) -> Tensor:
    """`posterior` with the scores ``logits``."""
    likelihoods = logits.softmax(-1)
    if codes is None:  # products with the identity would be exact: these are their bits
        own = torch.zeros_like(likelihoods).scatter_(-1, labels.unsqueeze(-1), 1)
        if smoothing:
            own = torch.lerp(own, torch.ones_like(own[0]) / len(own[0]), smoothing)
        return u + own - likelihoods
    own = codes[labels]
    if smoothing:
        own = torch.lerp(own, codes.mean(0), smoothing)
    return u + own - likelihoods @ codes


def latent_kl(family: str, categories: int, r: Tensor, u: Tensor) -> Tensor:
    """``KL(p_r || p_u)`` of latents with natural parameters ``[..., d]``, summed over the ``d`` dimensions: ``[...]``.

    Of an exponential family with log normaliser ``A``, it is ``<mu(r), r - u> - A(r) + A(u)``, with ``mu`` the gradient
    of ``A``.

    Args:
        family: ``gaussian``: independent, of unit variance; the natural parameter is the mean. ``bernoulli``:
            independent; it is the logit. ``categorical``: independent variables; it is the logits of each in turn.
        categories: Values of one categorical variable; no other family reads it.
        r: Natural parameters of the first distribution.
        u: Natural parameters of the second one.
    """
    match family:
        case "gaussian":
            return 0.5 * (r - u).square().sum(-1)
        case "bernoulli":
            return (torch.sigmoid(r) * (r - u) - F.softplus(r) + F.softplus(u)).sum(-1)
        case _:
            log_r, log_u = (x.reshape(*x.shape[:-1], -1, categories).log_softmax(-1) for x in (r, u))
            return (log_r.exp() * (log_r - log_u)).flatten(-2).sum(-1)


def centre(codes: Tensor, norm: float) -> Tensor:
    """Centre codes ``[C, d]`` over the classes, then scale them to the root mean square norm ``norm``.

    A softmax over classes ignores the mean code. Without centring, a chain of feedback blocks would map all classes to
    almost the same code.
    """
    centred = codes - codes.mean(0)
    return centred * (norm / centred.square().sum(1).mean().clamp_min(1e-12).sqrt())


def _skip(above: int, below: int) -> Tensor:
    """Weight ``[below, above]``: the identity, or a (semi-)orthogonal matrix if the widths differ."""
    weight = torch.empty(below, above)
    return nn.init.eye_(weight) if above == below else nn.init.orthogonal_(weight)


class Feedback(nn.Module):
    """Feedback block: maps a code book ``[C, above]`` to a code book ``[C, below]``.

    ``kind: linear`` is one matrix that starts as a skip; ``kind: mlp`` is a fixed skip plus an MLP that starts at zero.
    """

    def __init__(self, above: int, below: int, config: FeedbackConfig) -> None:
        super().__init__()
        self.norm = config.norm
        self.residual: nn.Sequential | None = None
        if config.kind == "linear":
            self.skip = nn.Parameter(_skip(above, below))
        else:
            self.register_buffer("skip", _skip(above, below))
            last = nn.Linear(config.hidden, below, bias=False)
            nn.init.zeros_(last.weight)
            self.residual = nn.Sequential(nn.Linear(above, config.hidden), nn.ReLU(), last)

    def forward(self, codes: Tensor | None) -> Tensor:
        """Code book of the block below. ``codes`` are None for one-hot ones, whose products have the bits of a copy."""
        below = self.skip.T.contiguous() if codes is None else codes @ self.skip.T
        if self.residual is not None:
            first, *rest = self.residual
            assert isinstance(first, nn.Linear)
            hidden = first.weight.T.contiguous() + first.bias if codes is None else first(codes)
            below = below + nn.Sequential(*rest)(hidden)
        return centre(below, self.norm)


class CodeBook(nn.Module):
    """Scores ``[B, C]`` of natural parameters ``[B, d]`` by a code book ``[C, d]``."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, u: Tensor) -> Tensor:
        return u @ self.codes.T


class BLLRule(LocalRule):
    """Block pair of BLL. Up goes ``(a_k, u_k)``, down comes ``(b_k, labels)``.

    ``u_k`` travels with ``a_k`` because the block above learns its feedback on it, and the head that makes it is here.
    The top block's book is the one-hot code: ``u_N`` are the logits, and the loss has cross entropy's gradient.
    """

    def __init__(self, context: BlockContext, config: BLL, head: nn.Module, feedback: Feedback | None) -> None:
        """``feedback`` is None in the bottom block: nothing learns from a target for the input."""
        super().__init__()
        self.block = context.module
        self.head = head
        self.feedback = feedback
        self._classes = context.classes
        self._is_top = context.is_top
        self._top = SplitTop(context)
        self.codes: Tensor | None
        """Book that stands until a message brings another one. The top needs none: it has one-hot codes, and keeps them
        where they are small for its fingerprint."""
        own = context.is_top and not is_chunked(self._classes, self._classes)
        self.register_buffer("codes", torch.eye(self._classes) if own else None)
        self._family = "gaussian" if context.is_top else config.latent.family
        self._categories = config.latent.categories
        self._smoothing = config.smoothing
        self._refresh = config.feedback.refresh
        self._theta = context.optimizer([*self.block.parameters(), *head.parameters()])
        self._phi = context.optimizer(feedback.parameters(), config.feedback.lr_scale) if feedback is not None else None
        self._u: Tensor | None = None

    def receive_target(self, n: int, message: Payload) -> Target:
        *book, labels = message
        if self._is_top:
            return (labels,)
        if book:
            (self.codes,) = book
        assert self.codes is not None, "the first target message brings a code book"
        return self.codes, labels

    @torch.no_grad()
    def make_target(self, n: int, target: Target) -> Payload:
        codes, labels = _codes_and_labels(target)
        assert self.feedback is not None, "nothing is below the bottom block"
        return (self.feedback(codes), labels) if n % self._refresh == 0 else (labels,)

    def target_part(self, part: BatchPart, target: Target) -> Target:
        *book, labels = target
        return *book, *super().target_part(part, (labels,))

    def forward_message(self, message: Payload) -> Payload:
        block, _ = self._top.parts(message) or (self.block, [])
        a = block(message[0])
        self._u = self.head(a)
        return a.detach(), self._u.detach()

    def update(self, part: BatchPart, message: Payload, target: Target) -> Metrics:
        assert self._u is not None, "an update follows a forward pass"
        codes, labels = _codes_and_labels(target)
        labels = labels.flatten()
        rows = self._u.flatten(0, -2), labels
        self._u = None
        if (split := self._top.parts(message)) is not None:
            loss, nll, accuracy = mean_of_rows(self._output_loss, rows, split[1], self._classes)
        else:
            books = [] if codes is None else [codes]
            loss, nll, accuracy = mean_of_rows(self._local_loss, rows, books, self._classes)
        self._theta.backward_and_step(loss, part)
        metrics = {"loss": loss.detach(), "nll": nll, "accuracy": accuracy}
        if self.feedback is not None and self._phi is not None:
            below = message[1].flatten(0, -2)
            book = self.feedback(codes)
            (feedback_loss,) = mean_of_rows(self._feedback_loss, (below, labels), [book], self._classes)
            self._phi.backward_and_step(feedback_loss, part)
            metrics["feedback_loss"] = feedback_loss.detach()
        return metrics

    def _local_loss(self, u: Tensor, labels: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The KL divergence, cross entropy and accuracy of ``u`` ``[R, d]``; one-hot codes if there are none."""
        with torch.no_grad():
            logits = scores(u, codes)
            rho = _posterior(u, logits, codes, labels, self._smoothing)
            nll, accuracy = F.cross_entropy(logits, labels), (logits.argmax(-1) == labels).float().mean()
        return latent_kl(self._family, self._categories, rho, u).mean(), nll, accuracy

    def _output_loss(self, features: Tensor, labels: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same at the top before its output layer of ``parameters``."""
        return self._local_loss(F.linear(features, *parameters), labels)

    def _feedback_loss(self, below: Tensor, labels: Tensor, book: Tensor) -> tuple[Tensor]:
        return (F.cross_entropy(below @ book.T, labels, label_smoothing=self._smoothing),)

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Prediction]:
        a = self.block(message[0])
        codes, _ = _codes_and_labels(target)
        return (a,), Prediction.of(scores(self.head(a), codes))

    def readout_module(self) -> nn.Module | None:
        if not isinstance(self.head, Head):
            return None  # the top's code is one-hot
        codes = torch.zeros(self._classes, self.head.dim) if self.codes is None else self.codes
        return nn.Sequential(self.head, CodeBook(codes))


def _codes_and_labels(target: Target) -> tuple[Tensor | None, Tensor]:
    """The parts of a target; at the top, whose codes are one-hot, no codes."""
    *book, labels = target
    return (book[0] if book else None), labels


class BLLRules(RuleSet):
    def __init__(self, config: BLL, context: RuleContext) -> None:
        """Raises ``ValueError`` if there are more classes than code books can have, or if ``latent`` does not fit."""
        super().__init__(context)
        classes = self.task.classes
        if classes > _MOST_CLASSES:
            raise ValueError(
                f"algorithm=bll: for {classes} classes a message down is a code book of {classes} x d numbers, allowed "
                f"are at most {_MOST_CLASSES} classes; algorithm=predsim sends labels alone"
            )
        self.config = config
        latent = config.latent
        with torch.device("meta"):
            heads = [Head(shape, config.head) for shape in self.shapes[:-1]]
        self._dims = [head.dim for head in heads] + [self.task.classes]
        for dim in self._dims[:-1]:
            if latent.family == "categorical" and dim % latent.categories:
                raise ValueError(
                    f"algorithm.latent.categories={latent.categories}: must divide {dim}, the dimensions of a block's "
                    "latent"
                )

    def rule(self, block: int) -> LocalRule:
        config, context = self.config, self.context.block(block)
        with self.seeded(config.name, block):
            head = nn.Identity() if context.is_top else Head(context.shape, config.head)
            above, below = self._dims[block - 1], self._dims[block - 2]
            feedback = None if context.is_bottom else Feedback(above, below, config.feedback)
        return BLLRule(context, config, head, feedback)

    def activation(self, block: int, batch: int) -> MessageSpec:
        a = (batch, *self.shapes[block - 1])
        u = (batch, *self.task.label_shape, self._dims[block - 1])
        return (a, torch.float32), (u, torch.float32)

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        labels = self.task.labels(batch)
        book = ((self.task.classes, self._dims[block - 1]), torch.float32)
        return (book, *labels) if n % self.config.feedback.refresh == 0 else labels

    def summarize(self, metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The free energy ``F = -log p(y|x) + (1/N) sum_k KL_k``."""
        return {"free_energy": metrics[-1]["nll"] + sum(block["loss"] for block in metrics) / len(metrics)}
