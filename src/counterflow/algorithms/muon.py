"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon): momentum made orthogonal.

``torch.optim.Muon`` takes matrices only and computes in bfloat16. This one takes the weights of convolutions too, as
matrices of a row for each output channel, and computes in float32: bits do not depend on a weight's memory layout.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """Roughly ``U V^T`` of ``matrix = U S V^T``, ``[m, n]``, in float32: Newton-Schulz's quintic iteration.

    The singular values end between about 0.7 and 1.2, the coefficients' price for few ``steps``.
    """
    a, b, c = _COEFFICIENTS
    m, n = matrix.shape
    x: Tensor = (matrix.T if m > n else matrix).float().contiguous()
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.T if m > n else x
    return result.contiguous()


def hidden_weights(block: nn.Module, is_top: bool) -> list[Tensor]:
    """Weights of the convolutions and linear layers in ``block``, but the last linear layer of the network.

    Weights that an embedding shares are left out.
    """
    layers = [m for m in block.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)]
    if is_top and layers and isinstance(layers[-1], nn.Linear):
        layers.pop()
    shared = {id(m.weight) for m in block.modules() if isinstance(m, nn.Embedding)}
    return [layer.weight for layer in layers if id(layer.weight) not in shared]


class OrthogonalMomentum(torch.optim.Optimizer):
    """Muon's update of weights ``[out, ...]``, as matrices ``[out, -1]``.

    The step is ``lr * sqrt(max(1, out / in))`` times the orthogonalised momentum; weight decay is decoupled.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        nesterov: bool,
        iterations: int,
    ) -> None:
        """Each group names its parameters (``params``) and its ``weight_decay``."""
        # All in the groups: a deep copy of an optimizer, like its pickle, has nothing else.
        options = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "iterations": iterations}
        super().__init__(groups, options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. Autocast is off in it: a product in bfloat16 would not be Newton-Schulz in float32."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    with torch.autocast(weight.device.type, enabled=False):
                        self._update(weight, group)

    def _update(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        assert weight.grad is not None, "the caller looks"
        gradient = weight.grad.reshape(len(weight), -1).contiguous()
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        rows, columns = update.shape
        update = orthogonalized(update, group["iterations"]).reshape(weight.shape)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))
