"""Result of one check, the table of all results, and the time limit of the system calls that checks make."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

_T = TypeVar("_T")


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    """A run works, but slower or less safely than it could."""
    FAIL = "fail"
    """A run would stop with an error, or never start."""


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    result: str
    advice: str = ""
    """The next step for the user; empty if and only if the status is ok."""

    def __post_init__(self) -> None:
        assert (self.status is Status.OK) == (not self.advice), f"{self.name}: advice belongs to warnings and failures"

    @classmethod
    def judge(cls, name: str, result: str, *problems: tuple[bool, Status, str]) -> "Check":
        """Check with status and advice of the first of ``problems`` that is present; ok if none is."""
        status, advice = next((found[1:] for found in problems if found[0]), (Status.OK, ""))
        return cls(name, status, result, advice)


def table(checks: Sequence[Check]) -> str:
    """Table with one line per check."""
    width = max((len(check.name) for check in checks), default=0)
    return "\n".join(
        f"{check.status:<4}  {check.name:<{width}}  {check.result}{f' -> {check.advice}' if check.advice else ''}"
        for check in checks
    )


def summary_line(checks: Sequence[Check]) -> str:
    """Number of checks by status."""
    counts = (f"{sum(check.status is status for check in checks)} {status}" for status in Status)
    return f"{len(checks)} checks: {', '.join(counts)}"


def with_timeout(seconds: float, call: Callable[[], _T]) -> _T:
    """Run ``call`` on a thread, and return or raise what it does.

    Raises ``TimeoutError`` after ``seconds``. The thread is then left behind: system calls for names that no server
    resolves, or for disks that do not answer, may never return. Only ``os._exit`` then ends the process.
    """
    executor = ThreadPoolExecutor(1)
    outcome = executor.submit(call)
    executor.shutdown(wait=False)
    if not wait([outcome], seconds).done:
        raise TimeoutError(f"nothing within {seconds:g} s")
    return outcome.result()
