"""Feedback alignment (Lillicrap et al., 2016): errors go back through fixed random weights."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.seeding import derive_seed


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
        # Exactly zero, but its gradient is the one that x receives.
        return output + (path - path.detach())

    def _through_feedback(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.feedback)
        c = self.layer
        assert isinstance(c.padding, tuple), "padding by name is not used in this house"
        return F.conv2d(x, self.feedback, None, c.stride, c.padding, c.dilation, c.groups)


def apply_feedback_alignment(network: nn.Module, seed: int) -> None:
    """Replace every convolution and linear layer inside ``network`` by an `Aligned` one.

    The feedback weights are drawn as the layer's own are, from a stream of their own. Attention keeps its gradient: its
    projections are parameters of one fused operation, not layers.
    """
    for name, parent in list(network.named_modules()):
        if isinstance(parent, nn.MultiheadAttention | FeedbackAligned):
            continue
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d | nn.Linear):
                setattr(
                    parent,
                    child_name,
                    FeedbackAligned(child, _feedback(child, derive_seed(seed, "fa", name, child_name))),
                )


def _feedback(layer: nn.Conv2d | nn.Linear, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    feedback = torch.empty_like(layer.weight, requires_grad=False)
    bound = layer.weight[0].numel() ** -0.5
    return nn.init.uniform_(feedback, -bound, bound, generator=generator)


def original_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` of an aligned network under the names that it had before: ``X.layer.weight`` is ``X.weight``."""
    aligned = {name.removesuffix("feedback") for name in state if name.endswith(".feedback")}
    renamed = {}
    for name, tensor in state.items():
        prefix, _, rest = name.rpartition("layer.")
        if name.removesuffix("feedback") not in aligned:
            renamed[prefix + rest if prefix in aligned else name] = tensor
    return renamed
