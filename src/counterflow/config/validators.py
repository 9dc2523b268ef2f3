"""Checks of option values. Errors are ``ValueError`` of one line: the key, the value, and what is allowed."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from omegaconf import MISSING


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


def sizes(key: str, values: Collection[int], fewest: int = 1) -> None:
    if len(values) < fewest or not all(1 <= value <= LARGEST for value in values):
        raise ValueError(f"{key}={values}: must be a list of positive numbers{'' if fewest else ', or []'}")


def rate(key: str, value: float) -> None:
    if not 0 <= value <= _STEEPEST:
        raise ValueError(f"{key}={value}: must be at least 0 and at most {_STEEPEST:g}")


def above(key: str, value: float, bound: float) -> None:
    if not value > bound:
        raise ValueError(f"{key}={value}: must be greater than {bound}")


def positive(key: str, value: float, most: int) -> None:
    if not 0 < value <= most:
        raise ValueError(f"{key}={value}: must be greater than 0 and at most {most}")


def fraction(key: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{key}={value}: must be at least 0 and below 1")


def count_or(key: str, value: object, word: str) -> None:
    """Check that ``value`` is ``word`` or a whole number of at least 1."""
    if value != word and not (type(value) is int and value >= 1):
        raise ValueError(f"{key}={value}: allowed are {word} and whole numbers of at least 1")


def checked(default: Any, check: Callable[..., None], *limits: object) -> Any:
    """Field of `Options` whose value ``check(key, value, *limits)`` checks; None only if it is the default."""
    metadata = {"check": (check, limits)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Options:
    """Options that check themselves; their keys begin with the class argument ``key``."""

    _prefix: ClassVar[str] = ""

    def __init_subclass__(cls, key: str | None = None) -> None:
        if key is not None:
            cls._prefix = f"{key}."

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if "check" in option.metadata and (value is not None or option.default is not None):
                check, limits = option.metadata["check"]
                check(f"{self._prefix}{option.name}", value, *limits)


@dataclass(kw_only=True)
class NamedOptions(Options):
    """Options of one of several kinds; an object keeps the name of its class."""

    name: str = MISSING

    def __post_init__(self) -> None:
        one_of(f"{self._prefix}name", self.name, (type(self).name,))
        super().__post_init__()
