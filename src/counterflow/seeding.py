"""Seeds of named random streams, so that no result depends on the order of draws or on the placement."""

import hashlib


def derive_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for the stream ``name`` of the run's ``seed``, e.g. ``derive_seed(seed, "dropout", block, n)``."""
    text = "/".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
