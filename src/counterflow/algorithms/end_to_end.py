"""End-to-end references: the same blocks, trained by a gradient through all of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.config import AlgorithmConfig
from counterflow.config.validators import checked, fraction
from counterflow.seeding import derive_seed


@dataclass(kw_only=True)
class EndToEnd(AlgorithmConfig, ABC):
    """A reference that ``algorithm=`` or a Trainer can name, by what it changes in a network before it is trained."""

    smoothing: float = checked(0.0, fraction)
    """Label smoothing of the cross entropy that is learnt; reported ones are without it."""

    @abstractmethod
    def convert(self, network: nn.Sequential, seed: int) -> None:
        """Change the modules of ``network`` in place."""

    def original_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` of a changed network under the names that it had before."""
        return dict(state)


@dataclass(kw_only=True)
class Backprop(EndToEnd):
    """The true gradient."""

    name: str = "bp"

    def convert(self, network: nn.Sequential, seed: int) -> None:
        """Nothing to change."""


class FeedbackAligned(nn.Module):
    """A convolution or linear layer whose input receives its gradient through ``feedback`` in place of ``weight``."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, feedback: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.feedback: Tensor
        self.register_buffer("feedback", feedback)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x.detach())
        if not x.requires_grad:
            return output
        path = self._through_feedback(x)
        # The sum is exactly zero; its gradient is the gradient of x.
        return output + (path - path.detach())

    def _through_feedback(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.feedback)
        c = self.layer
        assert isinstance(c.padding, tuple), "padding by name is not supported"
        return F.conv2d(x, self.feedback, None, c.stride, c.padding, c.dilation, c.groups)


@dataclass(kw_only=True)
class FeedbackAlignment(EndToEnd):
    """Feedback alignment (Lillicrap et al., 2016): errors are propagated back through fixed random weights."""

    name: str = "fa"

    def convert(self, network: nn.Module, seed: int) -> None:
        """Replace every convolution and linear layer inside ``network`` by a `FeedbackAligned` one.

        The feedback weights are the layer's initial weights in an order that is drawn from a random stream of their
        own, so that both have the same deviation. Where all weights of a layer are equal, the feedback weights are
        drawn as torch draws those of a layer.
        Attention keeps its true gradient: its projections are parameters of one fused operation, not layers.
        """
        for name, parent in list(network.named_modules()):
            if isinstance(parent, nn.MultiheadAttention | FeedbackAligned):
                continue
            for child_name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d | nn.Linear):
                    weights = _feedback(child, derive_seed(seed, "fa", name, child_name))
                    setattr(parent, child_name, FeedbackAligned(child, weights))

    def original_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` under the original names: ``X.layer.weight`` is ``X.weight``; buffers ``X.feedback`` are left out.

        Other names stay.
        """
        aligned = {path for name in state if f"{(path := name.removesuffix('.feedback'))}.layer.weight" in state}
        names = {f"{path}.layer.{kind}": f"{path}.{kind}" for path in aligned for kind in ("weight", "bias")}
        return {
            names.get(name, name): value
            for name, value in state.items()
            if name.removesuffix(".feedback") not in aligned
        }


def _feedback(layer: nn.Conv2d | nn.Linear, seed: int) -> Tensor:
    """The layer's own weights in random order: they have its distribution, whatever initialised it."""
    generator = torch.Generator().manual_seed(seed)
    weight = layer.weight.detach()
    if weight.is_meta:  # of a layer of another process
        return torch.empty_like(weight)
    if (weight == weight.flatten()[0]).all():  # such as zeros, through which no error would ever pass
        bound = weight[0].numel() ** -0.5
        return nn.init.uniform_(torch.empty_like(weight), -bound, bound, generator=generator)
    order = torch.randperm(weight.numel(), generator=generator)
    return weight.flatten()[order].view_as(weight)
