"""Trained networks outside of a run: their files, loading, export, prediction."""
