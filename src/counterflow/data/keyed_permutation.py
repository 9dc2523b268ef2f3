"""Permutation of very many indices that is computed index by index, without a table."""

from torch import Tensor

from counterflow.seeding import derive_seed

_ROUNDS = 6
_MASK = (1 << 31) - 1
_PRIMES = (0x45D9F3B, 0x2C1B3C6D)
"""Odd multipliers below 2**31, whose products with numbers below 2**31 fit into int64."""


def keyed_permutation(indices: Tensor, size: int, seed: int) -> Tensor:
    """Images of ``indices``, int64 ``[B]``, under the permutation ``seed`` of ``0 .. size - 1``, below 2**60.

    A Feistel network (Luby and Rackoff, 1988) permutes the next even power of two; a value beyond ``size`` goes through
    it again (Black and Rogaway, 2002).
    """
    half = max(1, (size - 1).bit_length() + 1 >> 1)
    keys = [derive_seed(seed, "round", number) & _MASK for number in range(_ROUNDS)]
    values = _permuted(indices, half, keys)
    while (beyond := values >= size).any():
        values[beyond] = _permuted(values[beyond], half, keys)
    return values


def _permuted(values: Tensor, half: int, keys: list[int]) -> Tensor:
    mask = (1 << half) - 1
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right, key) & mask)
    return left << half | right


def _mixed(values: Tensor, key: int) -> Tensor:
    values = (values ^ key) & _MASK
    for prime in _PRIMES:
        values = ((values ^ values >> 15) * prime) & _MASK
    return values ^ values >> 13
