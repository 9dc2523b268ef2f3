"""Checks of the CUDA paths on one GPU."""
