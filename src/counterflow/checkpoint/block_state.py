"""State of one block at a checkpoint, as plain containers of tensors and numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Messages = Mapping[int, tuple[Tensor, ...]]
"""Messages by training batch."""


@dataclass(frozen=True)
class BlockState:
    """Everything a block needs to continue after a training batch.

    Random numbers, data order and learning rates are functions of the batch index, so they are not stored.
    """

    rule: Mapping[str, Any]
    """``state_dict`` of the rule: parameters, buffers and optimizers."""
    targets: Messages = field(default_factory=dict)
    """Targets of later batches, as `LocalRule.receive_target` returned them."""
    labels: Mapping[int, Tensor] = field(default_factory=dict)
    """Labels of evaluations, by the training batch that each one follows."""
    in_flight: Messages = field(default_factory=dict)
    """Messages from the block below whose gradients have not arrived."""
    sent: Messages = field(default_factory=dict)
    """Messages on the way to the block below: the channel state of Chandy and Lamport."""

    def copy(self) -> "BlockState":
        """Deep copy in CPU memory, which training does not change."""
        copies: dict[int, Tensor] = {}

        def copied(tensor: Tensor) -> Tensor:
            """A tensor that several batches share (a code book) stays one tensor."""
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
            return copies[id(tensor)]

        return BlockState(**_map(vars(self), copied))

    def plain(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return vars(self).copy()

    def to(self, device: torch.device) -> "BlockState":
        """Move all messages to ``device``; the rule's own ``load_state_dict`` places its tensors."""
        messages = {name: value for name, value in vars(self).items() if name != "rule"}
        return BlockState(self.rule, **_map(messages, lambda tensor: tensor.to(device)))


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to all tensors in nested containers."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(item, function) for item in value)
    return value
