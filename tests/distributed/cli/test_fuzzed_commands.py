"""Fuzzed command lines: each trains three batches, or ends with one line; no traceback, no hang, no process left."""

import pytest
from hypothesis import example, given, settings

from tests.helpers.fuzzed_commands import OPTIONS, Command, check, commands, small


@pytest.mark.timeout(300)
@settings(OPTIONS, max_examples=6)
@given(command=commands())
@example(command=small("scale=[1,2]"))  # a TypeError of hydra
@example(command=small(f"model.width={2**31}"))  # torch: can't allocate memory
@example(command=small(f"algorithm.feedback.hidden={10**30}", ranks=2))  # torch: a size of too many digits
@example(command=small("optimizer.lr=1e300"))  # torch: cannot be converted to float
@example(command=small("seed=a\nb"))  # on two lines
@example(command=small("run.activations=-1"))  # was taken for all but one
@example(command=small("algorithm=bp", "optimizer=sgd", "optimizer.lr=1e6", ranks=2))  # gloo: closed by peer
def test_fuzzed_commands(command: Command) -> None:
    check(command.ranks, [*command.overrides])
