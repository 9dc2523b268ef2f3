"""Checks of option values. Errors are ``ValueError`` of one line: the key, the value, and what is allowed."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from omegaconf import MISSING

LARGEST = 2**20
"""Upper limit of sizes and counts. Larger values are typing errors, which torch reports on many lines or never."""

_STEEPEST = 1e6
"""Upper limit of rates and weights."""


def _require(allowed: bool, key: str, value: object, limits: str) -> None:
    if not allowed:
        raise ValueError(f"{key}={value}: {limits}")


def one_of(key: str, value: object, allowed: Collection[object]) -> None:
    _require(value in allowed, key, value, f"allowed are {', '.join(map(str, allowed))}")


def at_least(key: str, value: float, least: float) -> None:
    _require(value >= least, key, value, f"must be at least {least}")


def size(key: str, value: float, least: int, most: int = LARGEST) -> None:
    _require(least <= value <= most, key, value, f"must be at least {least} and at most {most}")


def sizes(key: str, values: Collection[int], fewest: int = 1) -> None:
    allowed = len(values) >= fewest and all(1 <= value <= LARGEST for value in values)
    _require(allowed, key, values, f"must be a list of positive numbers{'' if fewest else ', or []'}")


def rate(key: str, value: float) -> None:
    _require(0 <= value <= _STEEPEST, key, value, f"must be at least 0 and at most {_STEEPEST:g}")


def positive(key: str, value: float, most: float = math.inf) -> None:
    _require(
        0 < value <= most, key, value, f"must be greater than 0{'' if most == math.inf else f' and at most {most}'}"
    )


def fraction(key: str, value: float) -> None:
    _require(0.0 <= value < 1.0, key, value, "must be at least 0 and below 1")


def count_or(key: str, value: object, word: str) -> None:
    """Check that ``value`` is ``word`` or a whole number of at least 1."""
    allowed = value == word or (type(value) is int and value >= 1)
    _require(allowed, key, value, f"allowed are {word} and whole numbers of at least 1")


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
    """Options of one of several kinds; an object keeps the name of its class, if that has one."""

    name: str = MISSING

    def __post_init__(self) -> None:
        if type(self).name != MISSING:
            one_of(f"{self._prefix}name", self.name, (type(self).name,))
        super().__post_init__()


def named_call(group: str, target: str, args: Any, kind: str, example: str) -> dict[str, Any]:
    """Check ``GROUP.target`` and ``GROUP.args`` of something of the user's own; the arguments, none for None."""
    names = target.split(".")
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise ValueError(f"{group}.target={target}: must be the name of a {kind}, package.module.{example}")
    args = {} if args is None else args
    if not (isinstance(args, dict) and all(isinstance(name, str) for name in args)):
        raise ValueError(f"{group}.args={args}: must be named arguments, {{name: value, ..}}")
    return args
