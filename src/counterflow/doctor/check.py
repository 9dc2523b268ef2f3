"""One check: how it went, what was found, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    """A run works, but slower or less safely than it could."""
    FAIL = "fail"
    """A run would end, or never start."""


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    found: str
    advice: str = ""
    """What to do, of everything that is not ok."""

    def __post_init__(self) -> None:
        assert (self.status is Status.OK) == (not self.advice), f"{self.name}: advice where something is to be done"


def table(checks: Sequence[Check]) -> str:
    """One line a check."""
    width = max((len(check.name) for check in checks), default=0)
    return "\n".join(
        f"{check.status:<4}  {check.name:<{width}}  {check.found}{f' -> {check.advice}' if check.advice else ''}"
        for check in checks
    )


def verdict(checks: Sequence[Check]) -> str:
    """All checks in a few words."""
    count = {status: sum(check.status is status for check in checks) for status in Status}
    return f"{len(checks)} checks: {', '.join(f'{count[status]} {status}' for status in Status)}"
