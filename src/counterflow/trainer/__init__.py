"""The public Trainer and everything around a run: its start, rank 0's services, its result."""
