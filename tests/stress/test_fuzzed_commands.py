"""The campaign of fuzzed command lines."""

import pytest
from hypothesis import given, settings

from tests.helpers.fuzzed_commands import OPTIONS, Command, check, commands


@pytest.mark.timeout(3600)
@settings(OPTIONS, max_examples=500)
@given(command=commands())
def test_five_hundred_fuzzed_commands(command: Command) -> None:
    check(command.ranks, [*command.overrides])
