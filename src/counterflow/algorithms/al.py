"""Associated learning (Kao and Chen, arXiv 1906.05560; docs/rules/al.md).

Component i has ``f_i`` (the forward block), ``b_i`` (bridge), and on the target's side ``g_i`` (encoder) and ``h_i``
(decoder)::

    x = s_0 --f_1--> s_1 --f_2--> .. s_N          up: s_i and t_i
                      |b_1            |b_N
    y = t_0 --g_1--> t_1 --g_2--> .. t_N
      t'_0 <--h_1-- t'_1 <--h_2-- .. t'_N         down, while predicting: t'_i
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.chunked_loss import is_chunked, mean_of_rows
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import (
    BlockContext,
    LocalAlgorithm,
    LocalRule,
    MessageSpec,
    Metrics,
    Payload,
    PerBlockRules,
    Prediction,
    RuleContext,
    RuleSet,
    Target,
)
from counterflow.config import HeadConfig
from counterflow.config.validators import rate, size
from counterflow.models.head import Head, without_output_layer


@dataclass(kw_only=True)
class AL(LocalAlgorithm):
    """Associated learning: every block learns to associate its side of the input with its side of the target."""

    name: str = "al"
    dim: int = 128
    """Width of the target's side, ``t_1 .. t_N``."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The bridge is this head, a linear layer and tanh."""
    target_lr_scale: float = 1.0
    """Learning rate of the target's side, encoders and decoders, as a multiple of that of the input's side."""

    predicts_down = True

    def __post_init__(self) -> None:
        super().__post_init__()
        size("algorithm.dim", self.dim, 1)
        rate("algorithm.target_lr_scale", self.target_lr_scale)

    def rule_set(self, context: RuleContext) -> RuleSet:
        return ALRules(self, context)


class ALRule(LocalRule):
    """Component ``i``. Up go ``(s_i, t_i)``; predictions come down, a row for the bridge of every component above.

    ``|| b_i(s_i) - t_i ||^2`` trains ``f_i`` and ``b_i``, ``|| h_i(t_i) - t_{i-1} ||^2`` trains ``g_i`` and ``h_i``; no
    gradient goes into a target of either.

    ``g_i`` and ``h_i`` start with He et al.'s normal weights and biases of 0, as in the authors' code. The linear layer
    of ``b_i`` starts at zero, as its input is normed: with He's weights it would begin with large random codes. The
    network's output layer has no part in AL: the top component ends at the features below it.
    """

    def __init__(self, context: BlockContext, config: AL) -> None:
        super().__init__()
        dim = config.dim
        below = context.classes if context.is_bottom else dim
        self.block, shape = context.module, context.shape
        if context.is_top:
            self.block, shape = without_output_layer(self.block, shape)
        head = Head(shape, config.head)
        readout = nn.Linear(head.dim, dim)
        nn.init.zeros_(readout.weight)
        self.bridge = nn.Sequential(head, readout, nn.Tanh())
        self.encoder = nn.Sequential(_linear(below, dim), nn.Tanh())
        self.decoder = _linear(dim, below) if context.is_bottom else nn.Sequential(_linear(dim, below), nn.Tanh())
        # Labels become t_0 at the bottom.
        self._classes = context.classes if context.is_bottom else None
        self._top = context.is_top
        self._optimizer = context.optimizer([*self.block.parameters(), *self.bridge.parameters()])
        self._target_optimizer = context.optimizer(
            [*self.encoder.parameters(), *self.decoder.parameters()], config.target_lr_scale
        )
        self._up: tuple[Tensor, Tensor] | None = None

    def forward_message(self, message: Payload) -> Payload:
        s, t = self.block(message[0]), self._encoded(message[1])
        self._up = s, t
        return s.detach(), t.detach()

    def update(self, part: BatchPart, message: Payload, target: Target) -> Metrics:
        assert self._up is not None, "an update follows a forward pass"
        s, t = self._up
        self._up = None
        associated = _distance(self.bridge(s), t.detach())
        autoencoder = self._autoencoder_loss(t, message[1])
        self._optimizer.backward_and_step(associated, part)
        self._target_optimizer.backward_and_step(autoencoder, part)
        associated, autoencoder = associated.detach(), autoencoder.detach()
        return {"loss": associated + autoencoder, "associated": associated, "autoencoder": autoencoder}

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Tensor]:
        s = self.block(message[0])
        return (s,), self.bridge(s)

    def decode_prediction(self, own: Tensor, message: Payload) -> Payload:
        below = self.decoder(torch.cat([own.unsqueeze(0), *message]))
        return Prediction.of(below) if self._classes is not None else (below,)

    @property
    def inference_modules(self) -> Sequence[nn.Module]:
        return (self.block, self.decoder, *([self.bridge] if self._top else []))

    def readout_module(self) -> nn.Module:
        return self.bridge

    def decoder_module(self) -> nn.Module:
        return self.decoder

    def _target(self, below: Tensor) -> Tensor:
        """``t_{i-1}``; at the bottom the one-hot labels."""
        return below if self._classes is None else F.one_hot(below, self._classes).float()

    def _encoded(self, below: Tensor) -> Tensor:
        """``t_i``, of many labels without their one-hot codes."""
        if self._classes is not None and is_chunked(below.numel(), self._classes):
            first, squash = self.encoder
            assert isinstance(first, nn.Linear)
            encoded = squash(F.embedding(below, first.weight.T) + first.bias)
        else:
            encoded = self.encoder(self._target(below))
        assert isinstance(encoded, Tensor)
        return encoded

    def _autoencoder_loss(self, t: Tensor, below: Tensor) -> Tensor:
        if self._classes is None or not is_chunked(below.numel(), self._classes):
            return _distance(self.decoder(t), self._target(below))
        assert isinstance(self.decoder, nn.Linear)
        rows = t.flatten(0, -2), below.flatten()
        (loss,) = mean_of_rows(self._decoding, rows, list(self.decoder.parameters()), self._classes)
        return loss

    def _decoding(self, t: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (_distance(F.linear(t, weight, bias), self._target(labels)),)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Linear layer with the init of He et al. (2015), normal of variance ``2 / inputs``."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """``|| a - b ||^2``, the mean over the batch."""
    return (a - b).square().sum(-1).mean()


class ALRules(PerBlockRules):
    def __init__(self, config: AL, context: RuleContext) -> None:
        super().__init__(context, config.name, lambda block: ALRule(block, config))
        self.config = config

    def activation(self, block: int, batch: int) -> MessageSpec:
        t = (batch, *self.task.label_shape, self.config.dim)
        return *self.test_activation(block, batch), (t, torch.float32)

    def prediction(self, block: int, batch: int) -> MessageSpec:
        above = len(self.shapes) - block
        return (((above, batch, *self.task.label_shape, self.config.dim), torch.float32),)

    def summarize(self, metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The sums of the losses of all components."""
        return {name: sum(block[name] for block in metrics) for name in ("loss", "associated", "autoencoder")}
