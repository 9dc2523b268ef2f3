"""Runs that differ in their seed alone, and what tells such groups apart."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from counterflow.report import configuration
from counterflow.report.run import Run, Summary

BASELINE = "bp"
NAMES = {"bp": "BP", "fa": "FA", "predsim": "Pred-Sim", "al": "AL", "bll": "BLL"}
"""As the papers write them; in the order of tables and legends."""


@dataclass(frozen=True)
class Group:
    runs: Sequence[Run]
    """At least one; one a seed, in the order of seeds."""

    @property
    def first(self) -> Summary:
        """What is the same in all runs: algorithm, model, data, blocks, layers, parameters."""
        return self.runs[0].summary

    @property
    def name(self) -> str:
        return NAMES.get(self.first.algorithm, self.first.algorithm)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        return configuration.settings(self.runs[0].configuration)

    @cached_property
    def network(self) -> str:
        """Equal for groups that train the same network on the same data."""
        return configuration.digest(configuration.network(self.runs[0].configuration))

    @property
    def order(self) -> tuple[object, ...]:
        algorithm = self.first.algorithm
        rank = list(NAMES).index(algorithm) if algorithm in NAMES else len(NAMES)
        first = self.first
        return first.data, first.model, first.layers or 0, rank, algorithm, first.blocks, self.runs[0].group_hash


def gather(runs: Iterable[Run]) -> tuple[Sequence[Group], Sequence[Run]]:
    """The groups, in the order of tables, and runs left out because an earlier path has the same seed and options."""
    seeds: dict[str, dict[int, Run]] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: run.path):
        group = seeds.setdefault(run.group_hash, {})
        if group.setdefault(run.summary.seed, run) is not run:
            repeated.append(run)
    groups = [Group(tuple(group[seed] for seed in sorted(group))) for group in seeds.values()]
    return sorted(groups, key=lambda group: group.order), repeated


def differences(
    groups: Sequence[Group], *, per_algorithm: bool, without: Collection[str] = ()
) -> Sequence[Mapping[str, Any]]:
    """Of every group the options that others of ``groups`` have otherwise.

    An option is compared among those who mean the same by it: ``algorithm.*`` within an algorithm, ``model.*`` within
    a model, and so on; with ``per_algorithm`` all of them within an algorithm.
    """

    def peers(group: Group, key: str) -> tuple[object, ...]:
        section, _, option = key.partition(".")
        algorithm = group.first.algorithm if per_algorithm else None
        return algorithm, group.settings.get(f"{section}.name") if option != "name" else None

    keys = sorted({key for group in groups for key in group.settings} - set(without))
    found: list[dict[str, Any]] = [{} for _ in groups]
    for key in keys:
        values: dict[tuple[object, ...], set[str]] = {}
        for group in groups:
            values.setdefault(peers(group, key), set()).add(repr(group.settings.get(key)))
        for group, options in zip(groups, found, strict=True):
            if key in group.settings and len(values[peers(group, key)]) > 1:
                options[key] = group.settings[key]
    return found


def labels(groups: Sequence[Group], without: Collection[str] = ()) -> Sequence[str]:
    """A name for every group: its algorithm, and what tells it from others of the same. No two are equal."""
    texts = _texts(groups, without)
    return [
        text if texts.count(text) == 1 else f"{text} ({group.runs[0].group_hash[:6]})"
        for group, text in zip(groups, texts, strict=True)
    ]


def series(
    groups: Sequence[Group], attempts: Sequence[Collection[str]], x: Callable[[Group], int]
) -> Sequence[tuple[str, Sequence[Group]]]:
    """Named lines of groups that differ in nothing but options which a line may run through.

    ``attempts`` are sets of such options; the first one counts that gives no line two points at the same ``x``, or the
    last.
    """
    lines: dict[str, list[Group]] = {}
    for without in attempts:
        lines = {}
        for group, text in zip(groups, _texts(groups, without), strict=True):
            lines.setdefault(text, []).append(group)
        if all(len({x(group) for group in line}) == len(line) for line in lines.values()):
            break
    return list(lines.items())


def _texts(groups: Sequence[Group], without: Collection[str]) -> Sequence[str]:
    options = differences(groups, per_algorithm=True, without=without)
    short = _short({key for found in options for key in found})
    return [
        " ".join([group.name, *(f"{short[key]}={show(value)}" for key, value in found.items())])
        for group, found in zip(groups, options, strict=True)
    ]


def show(value: object) -> str:
    """A value as hydra writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _short(keys: Collection[str]) -> Mapping[str, str]:
    """The last word of every key; of ``.name``, and where the last word is not unique, the word before as well."""
    last = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    return {key: word if list(last.values()).count(word) == 1 else key for key, word in last.items()}
