"""Local classifiers and similarity matching (Noekland and Eidnes, arXiv 1901.06656; section 3.3 of the design)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.rule import Algorithm, LocalRule, Metrics, Payload, Shape, Target
from counterflow.config import AlgorithmConfig, OptimizerConfig
from counterflow.config.validators import size
from counterflow.models.head import pooling


@dataclass(kw_only=True)
class PredSimConfig(AlgorithmConfig):
    name: str = "predsim"
    beta: float = 0.99
    """Weight of the similarity loss; 0 is the local classifier alone, 1 the similarity loss alone."""
    dim: int = 2048
    """Feature maps are pooled for the local classifier until they have at most so many dimensions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"algorithm.beta={self.beta}: must be between 0 and 1")
        size("algorithm.dim", self.dim, 1)


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
    """What is compared: standard deviations of every channel after a 3x3 convolution, or a linear map of vectors.

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
    """A block with a local classifier and a similarity branch. Up goes ``a_k``, down come the labels, unchanged."""

    def __init__(
        self,
        block: nn.Module,
        classifier: nn.Module | None,
        branch: SimilarityBranch | None,
        beta: float,
        classes: int,
        optimizer: OptimizerConfig,
        batches: int,
    ) -> None:
        """A branch is None where its loss has no weight."""
        super().__init__()
        self.block = block
        self.classifier = classifier
        self.branch = branch
        self._beta = beta
        self._classes = classes
        self._optimizer = BlockOptimizer(self.parameters(), optimizer, batches)
        self._a: Tensor | None = None

    def receive_target(self, n: int, message: Payload) -> Target:
        return message

    def make_target(self, n: int, target: Target) -> Payload:
        return target

    def forward_message(self, message: Payload) -> Payload:
        self._a = self.block(message[0])
        return (self._a.detach(),)

    def update(self, n: int, message: Payload, target: Target) -> Metrics:
        assert self._a is not None, "learn follows ascend"
        a, (labels,) = self._a, target
        self._a = None
        if labels.ndim > 1:  # every position of a sequence is a sample
            a, labels = a.flatten(0, 1), labels.flatten()
        loss = torch.zeros((), device=a.device)
        metrics: dict[str, Tensor] = {}
        if self.classifier is not None:
            logits = self.classifier(a)
            nll = F.cross_entropy(logits, labels)
            loss = loss + (1 - self._beta) * nll
            metrics |= {"nll": nll.detach(), "accuracy": (logits.argmax(-1) == labels).float().mean()}
        if self.branch is not None:
            wanted = similarity(F.one_hot(labels, self._classes).to(a.dtype))
            sim = F.mse_loss(similarity(self.branch(a)), wanted)
            loss = loss + self._beta * sim
            metrics["sim"] = sim.detach()
        self._optimizer.backward_and_step(loss, n)
        return {"loss": loss.detach(), **metrics}

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Tensor | None]:
        a = self.block(message[0])
        return (a,), self.classifier(a).argmax(-1) if self.classifier is not None else None

    @property
    def inference_modules(self) -> Sequence[nn.Module]:
        return (self.block,)


class PredSim(Algorithm):
    Config = PredSimConfig

    def rule(self, block: int) -> LocalRule:
        """The top block has the ordinary output layer and cross entropy, whatever ``beta`` is."""
        config, shape, classes = self.config, self.shapes[block - 1], self.task.classes
        classifier: nn.Module | None = nn.Identity()
        branch, beta = None, 0.0
        if block < len(self.blocks):
            beta = config.beta
            with self.seeded(block):
                classifier = _classifier(shape, classes, config.dim) if beta < 1 else None
                branch = SimilarityBranch(shape) if beta > 0 else None
        return PredSimRule(self.blocks[block - 1], classifier, branch, beta, classes, self.optimizer, self.batches)


def _classifier(shape: Shape, classes: int, most: int) -> nn.Module:
    if len(shape) != 3:
        return nn.Linear(shape[-1], classes)
    channels, height, width = shape
    pool, dim = pooling((channels, height, width), most)
    return nn.Sequential(pool, nn.Linear(dim, classes))
