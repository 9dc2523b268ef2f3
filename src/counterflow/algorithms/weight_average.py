"""Averages of weights along training, by which blocks are evaluated."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Exponential moving averages of the parameters of ``owner``, and of the floating-point buffers of ``block``.

    Learning and messages use the fast weights of ``owner``. The averages are buffers of this module. After batch n they
    move by ``1 - min(decay, (n + 1) / (n + 10))`` towards the fast weights: the first weights are soon forgotten.
    """

    def __init__(self, owner: nn.Module, block: nn.Module, decay: float) -> None:
        """``block`` is a module of ``owner``; ``decay`` is at least 0 and below 1."""
        super().__init__()
        self._decay = decay
        self._places: list[tuple[nn.Module, str, str]] = []
        """Module and attribute of every fast tensor, and the name of its average."""
        inside = set(block.modules())
        seen: set[int] = set()  # layers may share a parameter
        for path, module in list(owner.named_modules()):
            names = [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
            if module in inside:
                names += [name for name, b in module.named_buffers(recurse=False) if b.is_floating_point()]
            for name in names:
                tensor = getattr(module, name)
                if id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                own = f"{path}.{name}".replace(".", "/")
                self.register_buffer(own, tensor.detach().clone())
                self._places.append((module, name, own))

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Move the averages after the update on batch ``n``."""
        share = 1 - min(self._decay, (n + 1) / (n + 10))
        for fast, average in self._pairs():
            average.lerp_(fast, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the owner has the averages, and this module the fast weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange averages and fast weights."""
        for fast, average in self._pairs():
            fast.data, average.data = average.data, fast.data

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for module, name, own in self._places:
            yield getattr(module, name), self.get_buffer(own)
