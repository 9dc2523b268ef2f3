"""Which cut of a model on which machines would be how fast: measured layers, and a simulation of the rest."""
