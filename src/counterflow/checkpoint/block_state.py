"""Everything that a block needs to go on after a cut, as plain containers of tensors and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Messages = Mapping[int, tuple[Tensor, ...]]
"""By training batch."""


@dataclass(frozen=True)
class BlockState:
    """Of one block after a batch. Random numbers, data order and learning rates are functions of the batch: there is
    nothing of them to keep."""

    rule: Mapping[str, Any]
    """``state_dict`` of the rule: parameters, buffers and optimizers."""
    targets: Messages = field(default_factory=dict)
    """Of batches beyond the cut, as `LocalRule.receive_target` returned them."""
    labels: Mapping[int, Tensor] = field(default_factory=dict)
    """Of the evaluations that follow these batches."""
    in_flight: Messages = field(default_factory=dict)
    """Messages from below whose gradients had not come."""
    sent: Messages = field(default_factory=dict)
    """What was under way to the block below: the state of the channel, in the words of Chandy and Lamport."""

    def copy(self) -> "BlockState":
        """In this process's own memory, which nothing changes any more."""
        return BlockState(**_copied(vars(self), {}))

    def plain(self) -> dict[str, Any]:
        return vars(self).copy()

    def to(self, device: torch.device) -> "BlockState":
        """With messages where the block computes; a rule places what is loaded into it itself."""
        messages = {name: _moved(value, device) for name, value in vars(self).items() if name != "rule"}
        return BlockState(self.rule, **messages)


def _copied(value: Any, seen: dict[int, Tensor]) -> Any:
    """``seen``: a code book that stands for several batches is one tensor, and stays one."""
    if isinstance(value, Tensor):
        if id(value) not in seen:
            seen[id(value)] = value.detach().to("cpu", copy=True)
        return seen[id(value)]
    if isinstance(value, Mapping):
        return {key: _copied(item, seen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, seen) for item in value)
    return value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    return tuple(_moved(item, device) for item in value)
