"""Metrics of a run: reported by every block, gathered on rank 0, written to files and shown."""
