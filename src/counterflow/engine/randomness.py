"""The random numbers of a forward pass: a function of what is computed, not of where or when."""

import torch

from counterflow.seeding import derive_seed


def seed_forward(device: torch.device, seed: int, part: int, n: int) -> None:
    """Seed the generator from which dropout draws, for the forward pass of one part of the network on batch ``n``."""
    cuda = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator
    generator.manual_seed(derive_seed(seed, "forward", part, n))
