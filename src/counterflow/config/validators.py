"""Checks of option values. Errors are ``ValueError`` of one line: the key, the value, and what is allowed."""

from collections.abc import Collection


def one_of(key: str, value: object, allowed: Collection[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value}: allowed are {', '.join(map(str, allowed))}")


def at_least(key: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{key}={value}: must be at least {least}")


LARGEST = 2**20
"""Upper limit of sizes and counts. Larger values are typing errors, which torch reports on many lines or never."""

_STEEPEST = 1e6
"""Upper limit of rates and weights."""


def size(key: str, value: float, least: int) -> None:
    if not least <= value <= LARGEST:
        raise ValueError(f"{key}={value}: must be at least {least} and at most {LARGEST}")


def rate(key: str, value: float) -> None:
    if not 0 <= value <= _STEEPEST:
        raise ValueError(f"{key}={value}: must be at least 0 and at most {_STEEPEST:g}")


def above(key: str, value: float, bound: float) -> None:
    if not value > bound:
        raise ValueError(f"{key}={value}: must be greater than {bound}")


def fraction(key: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{key}={value}: must be at least 0 and below 1")
