"""Sequences to be reversed: permutations of the tokens 0..9, and at every position the token at its mirror image."""

from math import factorial

import torch
from torch import Tensor

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split

TOKENS = 10
TRAIN_SIZE = 20_000
TEST_SIZE = 2_000


def load(config: DataConfig) -> Dataset:
    """Tokens and labels int64 ``[M, 10]``; the same for every run, and no test sequence is one of training."""
    drawn = torch.randperm(factorial(TOKENS), generator=torch.Generator().manual_seed(0))
    tokens = permutations(drawn[: TRAIN_SIZE + TEST_SIZE], TOKENS)
    train, test = tokens[:TRAIN_SIZE], tokens[TRAIN_SIZE:]
    return Dataset(Split(train, train.flip(1)), Split(test, test.flip(1)), classes=TOKENS)


def permutations(numbers: Tensor, size: int) -> Tensor:
    """Those of ``0..size-1`` that have ``numbers``, int64 ``[M]``, in lexicographic order: int64 ``[M, size]``."""
    left = torch.arange(size).expand(len(numbers), size)
    tokens = []
    for rest in reversed(range(size)):
        first = (numbers // factorial(rest))[:, None]
        numbers = numbers % factorial(rest)
        tokens.append(left.gather(1, first))
        others = torch.arange(rest)
        left = left.gather(1, others + (others >= first))
    return torch.cat(tokens, 1)
