"""Runs that differ in their seed alone, their statistics, and the comparisons they belong to."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import pandas as pd

from counterflow.report.runs import Run

BASELINE = "bp"
NAMES = {"bp": "BP", "fa": "FA", "predsim": "Pred-Sim", "al": "AL", "bll": "BLL"}
"""Names of the papers, in the order of tables and legends."""
STATISTICS = ["mean", "std", "count"]
"""Over seeds: mean, sample standard deviation (n - 1; NaN for a single value), and number of values."""


@dataclass(frozen=True)
class ConfigGroup:
    runs: Sequence[Run]
    """At least one; one a seed, in the order of seeds."""

    @cached_property
    def summaries(self) -> pd.DataFrame:
        """A row a run."""
        return pd.DataFrame([run.summary for run in self.runs])

    @property
    def first(self) -> Mapping[str, Any]:
        """Summary of the first run. All have its algorithm, model, data, blocks, layers and parameters."""
        return self.runs[0].summary

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.runs[0].settings

    @property
    def name(self) -> str:
        return str(NAMES.get(self.first["algorithm"], self.first["algorithm"]))

    @property
    def network(self) -> str:
        """Equal for groups that train the same network on the same data, however it is cut."""
        parts = [key for key in self.settings if key.startswith(("model.", "data.")) and key != "model.cut"]
        return repr([(key, self.settings[key]) for key in sorted(parts)])

    @property
    def order(self) -> tuple[object, ...]:
        first = self.first
        rank = list(NAMES).index(first["algorithm"]) if first["algorithm"] in NAMES else len(NAMES)
        return (
            first["data"],
            first["model"],
            first["layers"] or 0,
            rank,
            first["algorithm"],
            first["blocks"],
            first["group_hash"],
        )


@dataclass(frozen=True)
class Measure:
    """A result of runs on test data or on held-out data: an accuracy in percent, or of text the bits per byte."""

    name: str
    field: str
    block_field: str = ""
    factor: float = 100.0
    """From the summary to what is shown."""
    digits: int = 2
    """Decimal places in tables."""

    def of(self, groups: Sequence[ConfigGroup]) -> pd.DataFrame:
        """``STATISTICS`` of the network, a row a group; the mean is NaN where no run of the group measured it."""
        rows = [(self.factor * group.summaries[self.field].astype(float)).agg(STATISTICS).tolist() for group in groups]
        return pd.DataFrame(rows, columns=STATISTICS)

    def of_blocks(self, group: ConfigGroup) -> pd.DataFrame:
        """``STATISTICS`` by block, from 1 at the bottom. Blocks that predict nothing by themselves are left out."""
        runs = pd.DataFrame(group.summaries[self.block_field].tolist(), dtype=float)
        blocks = (self.factor * runs).melt(var_name="block").groupby("block")["value"].agg(STATISTICS)
        return blocks.set_axis(blocks.index + 1).dropna(subset="mean")

    def of_exits(self, group: ConfigGroup) -> pd.DataFrame:
        """``STATISTICS`` by ``block`` and ``flops`` of a sample, of predictions that end at a block; bottom to top."""
        exits = pd.DataFrame([*chain(*group.summaries["exits"])], columns=["block", "flops", self.field])
        values = self.factor * exits[self.field].astype(float)
        return values.groupby([exits["block"], exits["flops"]]).agg(STATISTICS).dropna(subset="mean")


TEST = Measure("test", "test_accuracy", "block_accuracy")
VALIDATION = Measure("validation", "validation_accuracy", "validation_block_accuracy")
TEST_BITS = Measure("test", "bits_per_byte", "block_bits_per_byte", factor=1, digits=4)
VALIDATION_BITS = Measure("validation", "validation_bits_per_byte", "validation_block_bits_per_byte", 1, 4)


def beside_backprop(groups: Sequence[ConfigGroup]) -> list[ConfigGroup]:
    """The groups of other algorithms than backprop."""
    return [group for group in groups if group.first["algorithm"] != BASELINE]


def main_accuracy(groups: Sequence[ConfigGroup]) -> Measure:
    """The accuracy that more of ``groups`` have; test data if both are as common. A plot never mixes the two."""
    return max((TEST, VALIDATION), key=lambda accuracy: accuracy.of(groups)["mean"].count())


def partition(groups: Sequence[ConfigGroup], key: Callable[[ConfigGroup], Hashable]) -> list[list[ConfigGroup]]:
    """Split ``groups`` by ``key``, in the order of first appearance."""
    numbers, _ = pd.factorize(pd.Series([key(group) for group in groups], dtype=object))
    return [[group for group, i in zip(groups, numbers, strict=True) if i == k] for k in sorted(set(numbers))]


def group_by_config(runs: Iterable[Run]) -> tuple[Sequence[ConfigGroup], Sequence[Run]]:
    """The groups, in the order of tables, and the repeated runs.

    A run is repeated if one of an earlier path has the same options and seed.
    """
    ordered = sorted(runs, key=lambda run: run.path)
    frame = pd.DataFrame([run.summary for run in ordered])
    repeated = frame.duplicated(["group_hash", "seed"])
    parts = frame[~repeated].sort_values("seed").groupby("group_hash")
    groups = [ConfigGroup([ordered[i] for i in part.index]) for _, part in parts]
    return sorted(groups, key=lambda group: group.order), [ordered[i] for i in frame.index[repeated]]


def differing_options(
    groups: Sequence[ConfigGroup], *, per_algorithm: bool, without: Collection[str] = ()
) -> Sequence[Mapping[str, Any]]:
    """For every group, the options that are different in others of ``groups``.

    An option is compared only among groups for which it means the same: ``algorithm.*`` within an algorithm,
    ``model.*`` within a model, and so on; with ``per_algorithm`` all of them within an algorithm.
    """

    def peers(group: ConfigGroup, key: str) -> str:
        section, _, option = key.partition(".")
        name = group.settings.get(f"{section}.name") if option != "name" else None
        return repr((group.first["algorithm"] if per_algorithm else None, name))

    keys = sorted({key for group in groups for key in group.settings} - set(without))
    options = pd.DataFrame(
        [(i, key, peers(group, key), repr(group.settings.get(key))) for key in keys for i, group in enumerate(groups)],
        columns=["group", "key", "peers", "value"],
    )
    differs = options.groupby(["key", "peers"])["value"].transform("nunique") > 1
    different = options[differs].groupby("group")["key"].agg(list)
    return [
        {key: group.settings[key] for key in different.get(i, []) if key in group.settings}
        for i, group in enumerate(groups)
    ]


def labels(groups: Sequence[ConfigGroup]) -> Sequence[str]:
    """Names of the groups: the algorithm, and the options that differ among those of the same. No two are equal."""
    texts = _texts(groups, ())
    return [
        text if texts.count(text) == 1 else f"{text} ({str(group.first['group_hash'])[:6]})"
        for group, text in zip(groups, texts, strict=True)
    ]


def line_groups(
    groups: Sequence[ConfigGroup], attempts: Sequence[Collection[str]], x: str
) -> Sequence[tuple[str, Sequence[ConfigGroup]]]:
    """Named lines of a plot: groups that differ in nothing but options that a line may run through.

    Args:
        groups: Points of all lines.
        attempts: Sets of such options. The first that gives no line two points at the same ``x`` counts, or the last.
        x: Key of the summary: position of a group on the x axis.
    """
    for without in attempts:
        points = pd.DataFrame({"line": _texts(groups, without), "x": [group.first[x] for group in groups]})
        if not points.duplicated().any():
            break
    return [(str(name), [groups[i] for i in line.index]) for name, line in points.groupby("line", sort=False)]


def _texts(groups: Sequence[ConfigGroup], without: Collection[str]) -> Sequence[str]:
    options = differing_options(groups, per_algorithm=True, without=without)
    short = _short({key for differing in options for key in differing})
    return [
        " ".join([group.name, *(f"{short[key]}={show(value)}" for key, value in differing.items())])
        for group, differing in zip(groups, options, strict=True)
    ]


def show(value: object) -> str:
    """A value as hydra writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(keys: Collection[str]) -> Mapping[str, str]:
    """The last word of every key, without ``.name``; the full key where that word is not unique."""
    last = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    return {key: word if list(last.values()).count(word) == 1 else key for key, word in last.items()}


@dataclass(frozen=True)
class Comparison:
    """The groups of one experiment at one scale: one table, and the only groups that are compared."""

    experiment: str | None
    scale: str | None
    """None without an experiment, which would choose the values of a scale."""
    groups: Sequence[ConfigGroup]
    repeated: Sequence[Run]
    """Runs left out, as another one of this comparison has the same seed and options."""

    @property
    def title(self) -> str:
        return f"{self.experiment}, scale {self.scale or 'not recorded'}" if self.experiment else "Of no experiment"

    @property
    def slug(self) -> str:
        return f"{self.experiment}-{self.scale or 'unscaled'}" if self.experiment else "runs"

    @property
    def runs(self) -> Sequence[Run]:
        return [run for group in self.groups for run in group.runs]

    def baseline(self, group: ConfigGroup) -> int | None:
        """Index of the backprop to compare ``group`` with: same network, data and budget, fewest other options.

        Backprop does not depend on the number of blocks, so that it decides only between equals: the same, else the
        lowest. None if ``group`` is backprop itself, if there is no backprop, or if two are equally near.
        """
        near = sorted(
            ((_distance(group, other), other.first["blocks"] != group.first["blocks"], other.first["blocks"]), i)
            for i, other in enumerate(self.groups)
            if other.first["algorithm"] == BASELINE
            and group.first["algorithm"] != BASELINE
            and other.network == group.network
            and other.first["steps"] == group.first["steps"]
        )
        tied = len(near) > 1 and near[0][0] == near[1][0]
        return None if not near or tied else near[0][1]


def compare(runs: Iterable[Run]) -> Sequence[Comparison]:
    """One comparison for each experiment and scale, in the order of their names; runs of no experiment come last."""
    ordered = list(runs)
    keys = [(run.summary["experiment"], run.summary["experiment"] and run.summary["scale"]) for run in ordered]
    frame = pd.DataFrame(keys, columns=["experiment", "scale"])
    return [
        Comparison(experiment, scale, *group_by_config([ordered[i] for i in part.index]))
        for _, part in frame.groupby(["experiment", "scale"], dropna=False)
        for experiment, scale in [keys[part.index[0]]]
    ]


def _distance(group: ConfigGroup, other: ConfigGroup) -> int:
    """Number of options that differ, without the blocks and the algorithm's own, which always do."""
    keys = {key for key in (*group.settings, *other.settings) if not key.startswith("algorithm.") and key != "blocks"}
    return sum(group.settings.get(key) != other.settings.get(key) for key in keys)
