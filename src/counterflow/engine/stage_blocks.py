"""Blocks that are one stage of a pipeline schedule, with the messages between them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from counterflow.engine.runtime import Runtime


class StageBlocks(nn.Sequential):
    """The blocks of a stage. Its messages are contiguous numbers of the wire's type, whatever it computes with."""

    def __init__(self, blocks: Sequence[nn.Module], runtime: Runtime, is_top: bool) -> None:
        super().__init__(*blocks)
        self._runtime = runtime
        self._is_top = is_top

    def outputs(self, activation: Tensor) -> Iterator[Tensor]:
        """The output of every block, bottom to top."""
        if activation.dtype == torch.bfloat16:
            activation = activation.float()
        if self._runtime.channels_last and activation.ndim == 4:
            activation = activation.contiguous(memory_format=torch.channels_last)
        for number, block in enumerate(self, 1):
            with self._runtime.autocast():
                activation = block(activation)
            if not (self._is_top and number == len(self)):
                activation = self._runtime.rounded(activation)
            yield activation

    def forward(self, activation: Tensor) -> Tensor:
        *_, output = self.outputs(activation)
        return output.to(torch.float32 if self._is_top else self._runtime.wire).contiguous()
