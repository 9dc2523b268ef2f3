"""Runs the programs of blocks over channels."""
