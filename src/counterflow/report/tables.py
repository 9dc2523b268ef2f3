"""Tables of a report, as text: a row a group or a run, and only the columns that the runs have values for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from counterflow.report.groups import (
    TEST,
    TEST_BITS,
    VALIDATION,
    VALIDATION_BITS,
    Comparison,
    ConfigGroup,
    Measure,
    differing_options,
    show,
)
from counterflow.report.runs import Run

TESTED_AGAIN = "†"
VIEWS = Measure("test, with test-time augmentation", "test_tta_accuracy")
SEQUENCES = Measure("test sequence", "test_sequence_accuracy")
_HASH = 12
"""Digits of a hash that are shown."""
_UNKNOWN = "not recorded"
_OWN_COLUMNS = ("algorithm.name", "model.name", "data.name", "blocks", "scale")


class Published(NamedTuple):
    percent: float
    source: str


_BLL = "Kappel et al., arXiv 2305.14974; the poster's Table 1, as given by the project owner"

PUBLISHED: Mapping[tuple[str, str, str], Published] = {
    ("bll", "resnet18", "fashion_mnist"): Published(94.2, _BLL),
    ("bll", "resnet50", "fashion_mnist"): Published(94.3, _BLL),
    ("bll", "resnet50", "cifar10"): Published(92.6, _BLL),
}
"""Test accuracies from papers, by algorithm, model and data. Only numbers that were read in their source are here."""


def table(comparison: Comparison) -> pd.DataFrame:
    """The cells as text. A cell without a value is empty; columns of empty cells are left out."""
    groups = comparison.groups
    baselines = pd.Series([comparison.baseline(group) for group in groups], dtype=float)
    published = "published" if comparison.scale == "full" else "published for the full-size network"
    speeds = pd.Series([group.summaries["samples_per_second"].mean() for group in groups])
    literature = [PUBLISHED.get((g.first["algorithm"], g.first["model"], g.first["data"])) for g in groups]
    ranks = [sorted({run.summary["ranks"] or 1 for run in group.runs}) for group in groups]
    columns = {
        "algorithm": [group.name for group in groups],
        "model": [group.first["model"] for group in groups],
        "data": [group.first["data"] for group in groups],
        "blocks": [str(group.first["blocks"]) for group in groups],
        "options": option_texts(groups),
        "processes": ["" if all(count == [1] for count in ranks) else ", ".join(map(str, count)) for count in ranks],
        "test accuracy [%]": [_spread(group, TEST) for group in groups],
        "with test-time augmentation [%]": [_spread(group, VIEWS) for group in groups],
        "sequences right [%]": [_spread(group, SEQUENCES) for group in groups],
        "validation accuracy [%]": [_spread(group, VALIDATION) for group in groups],
        "seeds": [str(len(group.runs)) for group in groups],
        "test gap to BP [points]": _gaps(groups, baselines, TEST),
        "validation gap to BP [points]": _gaps(groups, baselines, VALIDATION),
        f"{published} [%]": [f"{entry.percent:.1f}" if entry else "" for entry in literature],
        "parameters (effective + affiliated)": [
            f"{group.first['effective_parameters']:,} + {group.first['affiliated_parameters']:,}" for group in groups
        ],
        "extra FLOPs [%]": _texts(100 * pd.Series([g.first["extra_flops"] for g in groups], dtype=float), "{:.1f}"),
        "samples/s": _texts(speeds, "{:,.0f}"),
        "samples/s over BP's": _texts(_speedups(groups, baselines, speeds), "{:.2f}"),
    }
    frame = pd.DataFrame(columns)
    return frame.loc[:, (frame != "").any()]


def text_table(comparison: Comparison) -> pd.DataFrame:
    """Language models, the cells as text; no rows if there are none, and no columns of empty cells.

    Bits of blocks are means over seeds. A gap is the difference of the means as a share of backprop's.
    """
    groups = comparison.groups
    baselines = pd.Series([comparison.baseline(group) for group in groups], dtype=float)
    rates = pd.Series([group.summaries["tokens_per_second"].astype(float).mean() for group in groups])
    frame = pd.DataFrame(
        {
            "algorithm": [group.name for group in groups],
            "blocks": [str(group.first["blocks"]) for group in groups],
            "options": option_texts(groups),
            "seeds": [str(len(group.runs)) for group in groups],
            "batches": [f"{group.first['steps']:,}" for group in groups],
            "test [bits per byte]": [_spread(group, TEST_BITS) for group in groups],
            "validation [bits per byte]": [_spread(group, VALIDATION_BITS) for group in groups],
            "test gap to BP [%]": _relative_gaps(groups, baselines, TEST_BITS),
            "validation gap to BP [%]": _relative_gaps(groups, baselines, VALIDATION_BITS),
            "test of blocks, bottom to top": [_of_blocks(group, TEST_BITS) for group in groups],
            "validation of blocks, bottom to top": [_of_blocks(group, VALIDATION_BITS) for group in groups],
            "extra FLOPs [%]": _texts(100 * pd.Series([g.first["extra_flops"] for g in groups], dtype=float), "{:.1f}"),
            "tokens/s": _texts(rates, "{:,.0f}"),
        }
    )
    frame = frame[[is_text(group) for group in groups]]
    return frame.loc[:, (frame != "").any()]


def is_text(group: ConfigGroup) -> bool:
    """True if the runs are of a language model, and have its bits per byte."""
    return any(group.summaries[measure.field].notna().any() for measure in (TEST_BITS, VALIDATION_BITS))


def run_records(runs: Iterable[Run]) -> pd.DataFrame:
    """Records of the runs as text, a row a run: directory, seed, hashes, versions, machine."""
    return pd.DataFrame(
        [
            {
                "run": run.path.as_posix(),
                "seed": str(run.summary["seed"]),
                "configuration": run.summary["config_hash"][:_HASH],
                "fingerprint": (run.summary["fingerprint"] or "none")[:_HASH],
                "commit": run.summary["git_commit"] or _UNKNOWN,
                "torch": run.summary["torch_version"],
                "device": run.summary["device"],
                "hardware": run.summary["hardware"] or _UNKNOWN,
            }
            for run in sorted(runs, key=lambda run: run.path)
        ]
    )


def numeric_columns(frame: pd.DataFrame) -> Sequence[bool]:
    """True for every column whose texts are numbers."""
    return [frame[name].str.match(r"[-+\d]|$").all() for name in frame]


def option_texts(groups: Sequence[ConfigGroup]) -> Sequence[str]:
    """Options of every group that others do not share, without those that have a column of their own."""
    return [
        ", ".join(f"{key}={show(value)}" for key, value in options.items())
        for options in differing_options(groups, per_algorithm=False, without=_OWN_COLUMNS)
    ]


def mean_text(mean: float, deviation: float, form: str = ".2f") -> str:
    """Both as ``form`` says; no deviation if it is NaN."""
    return f"{mean:{form}}" if pd.isna(deviation) else f"{mean:{form}} ± {deviation:{form}}"


def _texts(values: pd.Series, text: str) -> Sequence[str]:
    """Values by a format; empty for NaN."""
    return ["" if pd.isna(value) else text.format(value) for value in values]


def _spread(group: ConfigGroup, accuracy: Measure) -> str:
    """Mean and deviation; the number of seeds if not all have a value, and a mark if test data was used again."""
    mean, deviation, count = accuracy.of([group]).iloc[0]
    if not count:
        return ""
    text = mean_text(mean, deviation, f".{accuracy.digits}f")
    if count < len(group.runs):
        text += f" (of {count:.0f})"
    return (
        f"{text} {TESTED_AGAIN}" if accuracy in (TEST, TEST_BITS) and any(run.tests > 1 for run in group.runs) else text
    )


def _gaps(groups: Sequence[ConfigGroup], baselines: pd.Series, accuracy: Measure) -> Sequence[str]:
    """Differences of the means to those of the baselines; empty where one is unknown."""
    means = accuracy.of(groups)["mean"]
    return _texts(means - baselines.map(means), "{:+.2f}")


def _relative_gaps(groups: Sequence[ConfigGroup], baselines: pd.Series, measure: Measure) -> Sequence[str]:
    """Differences of the means to those of the baselines, in percent of these; empty where one is unknown."""
    means = measure.of(groups)["mean"]
    return _texts(100 * (means / baselines.map(means) - 1), "{:+.2f}")


def _of_blocks(group: ConfigGroup, measure: Measure) -> str:
    """Means of all blocks with a prediction; empty if only one has."""
    means = measure.of_blocks(group)["mean"]
    return ", ".join(f"{mean:.3f}" for mean in means) if len(means) > 1 else ""


def _speedups(groups: Sequence[ConfigGroup], baselines: pd.Series, speeds: pd.Series) -> pd.Series:
    """Speeds over those of the baselines; NaN if the two ran on different machines."""
    machines = pd.Series([{(run.summary["device"], run.summary["hardware"]) for run in group.runs} for group in groups])
    same = (machines.map(len) == 1) & (machines == baselines.map(machines))
    return (speeds / baselines.map(speeds)).where(same)


def several(values: Iterable[str | None]) -> str:
    """All of the values, each once."""
    return ", ".join(sorted({_UNKNOWN if pd.isna(value) else str(value) for value in values}))
