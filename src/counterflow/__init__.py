"""Counterflow: a multi-process, locking-free pipeline trainer on torch.distributed."""

__version__ = "0.1.0"
