"""Table of a comparison: a row a group, and only the columns that its runs have values for."""

from collections.abc import Sequence

import pandas as pd

from counterflow.report.groups import TEST, VALIDATION, Accuracy, Comparison, ConfigGroup, differing_options, show
from counterflow.report.literature import PUBLISHED

FULL = "full"
"""The scale at which networks are those of the papers."""
TESTED_AGAIN = "†"
_SEQUENCES = Accuracy("test sequence", "test_sequence_accuracy")
_OWN_COLUMN = ("algorithm.name", "model.name", "data.name", "blocks", "scale")
_VERSIONS = {
    "torch": "torch_version",
    "torchvision": "torchvision_version",
    "commit": "git_commit",
    "hardware": "hardware",
}


def table(comparison: Comparison) -> pd.DataFrame:
    """The cells as text. A cell without a value is empty; columns of empty cells are left out."""
    groups = comparison.groups
    baselines = pd.Series([comparison.baseline(group) for group in groups], dtype=float)
    published = "published" if comparison.scale == FULL else "published for the full-size network"
    speeds = pd.Series([group.summaries["samples_per_second"].mean() for group in groups])
    literature = [PUBLISHED.get((g.first["algorithm"], g.first["model"], g.first["data"])) for g in groups]
    differing = differing_options(groups, per_algorithm=False, without=_OWN_COLUMN)
    columns = {
        "algorithm": [group.name for group in groups],
        "model": [group.first["model"] for group in groups],
        "data": [group.first["data"] for group in groups],
        "blocks": [str(group.first["blocks"]) for group in groups],
        "options": [", ".join(f"{key}={show(value)}" for key, value in options.items()) for options in differing],
        "processes": _processes(groups),
        "test accuracy [%]": [_spread(group, TEST) for group in groups],
        "sequences right [%]": [_spread(group, _SEQUENCES) for group in groups],
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


def markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown; columns of numbers are aligned to the right."""
    numeric = [frame[name].str.match(r"[-+\d]|$").all() for name in frame]
    rows = [frame.columns, ["---:" if right else "---" for right in numeric], *frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def version_note(summaries: pd.DataFrame) -> str:
    """A line that names the versions and machines of runs that do not share them; empty if they do."""
    names = {name: sorted(summaries[column].dropna().unique()) for name, column in _VERSIONS.items()}
    differing = [f"{name} {', '.join(values)}" for name, values in names.items() if len(values) > 1]
    return f"These runs were made under different versions: {'; '.join(differing)}." if differing else ""


def _texts(values: pd.Series, text: str) -> Sequence[str]:
    """Values by a format; empty for NaN."""
    return ["" if pd.isna(value) else text.format(value) for value in values]


def _processes(groups: Sequence[ConfigGroup]) -> Sequence[str]:
    """Numbers of processes; nothing if every run had one."""
    counts = [sorted({run.summary["ranks"] or 1 for run in group.runs}) for group in groups]
    return ["" if all(count == [1] for count in counts) else ", ".join(map(str, count)) for count in counts]


def _spread(group: ConfigGroup, accuracy: Accuracy) -> str:
    """Mean and deviation; the number of seeds if not all have a value, and a mark if test data was used again."""
    result = accuracy.of(group)
    if result is None:
        return ""
    text = f"{result.mean:.2f}"
    if result.std is not None:
        text += f" ± {result.std:.2f}"
    if result.count < len(group.runs):
        text += f" (of {result.count})"
    return f"{text} {TESTED_AGAIN}" if accuracy is TEST and any(run.tests > 1 for run in group.runs) else text


def _gaps(groups: Sequence[ConfigGroup], baselines: pd.Series, accuracy: Accuracy) -> Sequence[str]:
    """Differences of the means to those of the baselines; empty where one is unknown."""
    results = map(accuracy.of, groups)
    means = pd.Series([None if result is None else result.mean for result in results], dtype=float)
    return _texts(means - baselines.map(means), "{:+.2f}")


def _speedups(groups: Sequence[ConfigGroup], baselines: pd.Series, speeds: pd.Series) -> pd.Series:
    """Speeds over those of the baselines; NaN if the two ran on different machines."""
    machines = pd.Series([{(run.summary["device"], run.summary["hardware"]) for run in group.runs} for group in groups])
    same = (machines.map(len) == 1) & (machines == baselines.map(machines))
    return (speeds / baselines.map(speeds)).where(same)
