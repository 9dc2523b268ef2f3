"""Local classifiers and similarity matching (Noekland and Eidnes, arXiv 1901.06656).

The equations are in docs/rules/predsim.md.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.chunked_loss import SplitTop, mean_of_rows
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import (
    BlockContext,
    LocalAlgorithm,
    LocalRule,
    Metrics,
    Payload,
    PerBlockRules,
    Prediction,
    RuleContext,
    RuleSet,
    Shape,
    Target,
)
from counterflow.config import HeadConfig
from counterflow.config.validators import checked, fraction, one_of
from counterflow.models.gpt import DEVIATION
from counterflow.models.head import Head


@dataclass(kw_only=True)
class PredSim(LocalAlgorithm):
    """Local classifiers and similarity matching."""

    name: str = "predsim"
    beta: float = 0.5
    """Weight of the similarity loss; 0 is the local classifier alone, 1 the similarity loss alone. The paper's 0.99 is
    for hundreds of epochs and wide layers."""
    similarity: str = checked("block", one_of, ("block", "layer"))
    """Outputs that have a similarity loss: those of every ``block``, or of every ``layer`` with parameters, as in the
    paper, where a layer is a block; their sum is learnt."""
    smoothing: float = checked(0.0, fraction)
    """Label smoothing of the cross entropy that is learnt; the reported ``nll`` is without it."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The local classifier is this head and a linear layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"algorithm.beta={self.beta}: must be between 0 and 1")

    def rule_set(self, context: RuleContext) -> RuleSet:
        return PerBlockRules(context, self.name, lambda block: PredSimRule(block, self))


def similarity(x: Tensor) -> Tensor:
    """Adjusted cosine similarity of the rows of ``[B, d]``: ``[B, B]``, each row centred by its own mean.

    A constant row is similar to nothing, and receives no gradient.
    """
    centred = x - x.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    unit = centred / (norm + 1e-8).masked_fill(norm == 0, torch.inf)
    matrix: Tensor = unit @ unit.T
    return matrix


class SimilarityBranch(nn.Module):
    """Compared features: standard deviations of every channel after a 3x3 convolution, or a linear map of vectors.

    Maps of one pixel have no deviation: they are compared as the vectors that they are.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape[0] if len(shape) == 3 else shape[-1]
        self.layer: nn.Module = (
            nn.Conv2d(width, width, 3, padding=1, bias=False)
            if len(shape) == 3
            else nn.Linear(width, width, bias=False)
        )

    def forward(self, activation: Tensor) -> Tensor:
        features: Tensor = self.layer(activation)
        if features.ndim != 4:
            return features
        pixels = features.flatten(2)
        return pixels.std(2) if pixels.shape[2] > 1 else pixels.squeeze(2)


class PredSimRule(LocalRule):
    """A block with a local classifier and a similarity branch. Up goes ``a_k``, down come the labels, unchanged.

    The top block has the ordinary output layer and cross entropy, whatever ``beta`` is. A branch is None where its loss
    has no weight. ``branches`` are those of layers below the block's last one, by their index in the block.
    """

    def __init__(self, context: BlockContext, config: PredSim) -> None:
        super().__init__()
        self._beta = 0.0 if context.is_top else config.beta
        self.block = context.module
        self.classifier: nn.Module | None = None
        if context.is_top:
            self.classifier = nn.Identity()
        elif self._beta < 1:
            head = Head(context.shape, config.head)
            output = nn.Linear(head.dim, context.classes)
            if len(context.shape) == 2:  # from zero, a language model learns at half the pace (results/log.md)
                nn.init.normal_(output.weight, std=DEVIATION)
            else:
                nn.init.zeros_(output.weight)  # as in the authors' code
            self.classifier = nn.Sequential(head, output)
        self.branch = SimilarityBranch(context.shape) if self._beta > 0 else None
        self.branches = nn.ModuleDict()
        self._outputs: dict[str, Tensor] = {}
        self._inner_beta = config.beta
        if config.similarity == "layer" and config.beta > 0:
            below = list(self.block.named_children())[:-1]
            for (name, layer), shape in zip(below, context.layer_shapes, strict=False):
                if next(layer.parameters(), None) is not None:
                    self.branches[name] = SimilarityBranch(shape)
                    layer.register_forward_hook(partial(self._keep, name))
        self._classes = context.classes
        self._top = SplitTop(context)
        self._smoothing = config.smoothing
        self._optimizer = context.optimizer(self.parameters())
        self._a: Tensor | None = None

    def _keep(self, name: str, layer: nn.Module, inputs: object, output: Tensor) -> None:
        if self.training:
            self._outputs[name] = output

    def forward_message(self, message: Payload) -> Payload:
        block, _ = self._top.parts(message) or (self.block, [])
        self._a = block(message[0])
        return (self._a.detach(),)

    def update(self, part: BatchPart, message: Payload, target: Target) -> Metrics:
        assert self._a is not None, "an update follows a forward pass"
        a, (labels,) = self._a, target
        self._a = None
        compared: list[tuple[float, nn.Module, Tensor]] = (
            [(self._beta, self.branch, a)] if self.branch is not None else []
        )
        compared += [(self._inner_beta, branch, self._outputs[name]) for name, branch in self.branches.items()]
        self._outputs.clear()
        if labels.ndim > 1:  # every position of a sequence is a sample
            labels = labels.flatten()
            compared = [(beta, branch, output.flatten(0, 1)) for beta, branch, output in compared]
        loss = torch.zeros((), device=a.device)
        metrics: dict[str, Tensor] = {}
        if self.classifier is not None:
            features, (_, parameters) = a, self._top.parts(message) or (self.block, [])
            if isinstance(self.classifier, nn.Sequential):
                head, output = self.classifier
                features, parameters = head(a), list(output.parameters())
            rows = features.flatten(0, -2), labels
            learnt, nll, accuracy = mean_of_rows(self._classification, rows, parameters, self._classes)
            loss = loss + (1 - self._beta) * learnt
            metrics |= {"nll": nll, "accuracy": accuracy}
        if compared:
            wanted = similarity(F.one_hot(labels, self._classes).to(a.dtype))
            losses = [(beta, F.mse_loss(similarity(branch(output)), wanted)) for beta, branch, output in compared]
            for beta, sim in losses:
                loss = loss + beta * sim
            metrics["sim"] = torch.stack([sim for _, sim in losses]).detach().sum()
        self._optimizer.backward_and_step(loss, part)
        return {"loss": loss.detach(), **metrics}

    def _classification(self, features: Tensor, labels: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cross entropy that is learnt, that without smoothing, and the accuracy.

        ``features`` are ``[R, d]``, and ``parameters`` the weight and bias of a linear layer, or none for scores.
        """
        logits = F.linear(features, *parameters) if parameters else features
        learnt = F.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        nll = F.cross_entropy(logits.detach(), labels) if self._smoothing else learnt.detach()
        return learnt, nll, (logits.argmax(-1) == labels).float().mean()

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Prediction | None]:
        a = self.block(message[0])
        return (a,), Prediction.of(self.classifier(a)) if self.classifier is not None else None

    def readout_module(self) -> nn.Module | None:
        return None if isinstance(self.classifier, nn.Identity) else self.classifier
