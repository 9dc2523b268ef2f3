"""Data sets without files: digits, which ships with scikit-learn, and reverse, which is generated."""

from functools import cache
from math import factorial

import torch
from torch import Tensor

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split

TOKENS = 10


def digits(config: DataConfig) -> Dataset:
    """Handwritten digits: 1,437 training and 360 test images, uint8 ``[M, 1, 8, 8]``, values 0..16.

    The split is the same for every run.
    """
    return _digits()


@cache  # a benchmark, a sweep or a test reads them for every run of its process
def _digits() -> Dataset:
    # These imports take seconds, so processes with other data skip them.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy(source.images).to(torch.uint8).unsqueeze(1)
    whole = Split(images, torch.from_numpy(source.target).long())
    train, test = train_test_split(range(len(whole)), test_size=360, stratify=source.target, random_state=0)
    return Dataset(whole[train], whole[test], classes=10)


def reverse(config: DataConfig) -> Dataset:
    """Permutations of the tokens 0..9; the label at each position is the token at the mirrored position.

    There are 20,000 training and 2,000 test sequences, which do not overlap. Tokens and labels are int64 ``[M, 10]``,
    the same for every run.
    """
    drawn = torch.randperm(factorial(TOKENS), generator=torch.Generator().manual_seed(0))
    tokens = permutations(drawn[:22_000], TOKENS)
    whole = Split(tokens, tokens.flip(1))
    return Dataset(whole[:20_000], whole[20_000:], classes=TOKENS)


def permutations(numbers: Tensor, size: int) -> Tensor:
    """Permutations of ``0..size-1`` by lexicographic number: int64 ``[M]`` to int64 ``[M, size]``."""
    left = torch.arange(size).expand(len(numbers), size)
    tokens = []
    for rest in reversed(range(size)):
        first = (numbers // factorial(rest))[:, None]
        numbers = numbers % factorial(rest)
        tokens.append(left.gather(1, first))
        others = torch.arange(rest)
        left = left.gather(1, others + (others >= first))
    return torch.cat(tokens, 1)
