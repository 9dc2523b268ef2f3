"""Planner: predicts from measured layers how fast each partition of a model would train on given machines."""
