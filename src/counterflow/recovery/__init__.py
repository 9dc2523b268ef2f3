"""Recovery of single ranks (``engine.recovery=rank``): a killed rank is replaced, and its inputs are sent again."""
