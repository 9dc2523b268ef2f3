"""Content of a report, which ``report.md`` and ``index.html`` share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from counterflow.report.groups import Comparison
from counterflow.report.runs import Run
from counterflow.report.tables import PUBLISHED, several

FIGURES = "figures"
"""Folder of the plots, beside the report."""
READING = """\
Accuracies are mean ± sample standard deviation over seeds. Gaps are to backprop on the same network, data and number of
batches, of the same experiment and scale. Of parameters, the effective ones predict and the affiliated ones only help
to learn. Extra FLOPs are what training takes beyond backprop of the same network, as a share of that: heads, feedback
and bridges, less the gradients that never leave a block. Speeds are compared on equal machines only."""
TEXTS = "Language models: the fewer bits per byte, the better"
"""Caption of their table."""
_VERSIONS = {
    "torch": "torch_version",
    "torchvision": "torchvision_version",
    "commit": "git_commit",
    "hardware": "hardware",
}


@dataclass(frozen=True)
class Report:
    title: str
    command: str
    """The command line that makes it."""
    comparisons: Sequence[Comparison]
    """One section each."""
    unfinished: Sequence[Path]
    """Run directories without a summary."""

    @property
    def count(self) -> str:
        """Number of runs, in words."""
        count = sum(len(comparison.runs) for comparison in self.comparisons)
        return f"{count} finished run{'s' * (count != 1)}"

    @property
    def left_out(self) -> Mapping[str, Sequence[Path]]:
        """Run directories that are in no table, by the reason."""
        reasons = {
            "Unfinished, without summary.json": self.unfinished,
            "Of the same seed and options as another run above": [
                run.path for comparison in self.comparisons for run in comparison.repeated
            ],
        }
        return {reason: paths for reason, paths in reasons.items() if paths}


def notes(runs: Sequence[Run]) -> Sequence[str]:
    """Sentences on the versions of ``runs`` and on the published numbers beside theirs."""
    summaries = pd.DataFrame([run.summary for run in runs])
    versions = {name: sorted(summaries[column].dropna().unique()) for name, column in _VERSIONS.items()}
    differing = [f"{name} {', '.join(values)}" for name, values in versions.items() if len(values) > 1]
    keys = {(run.summary["algorithm"], run.summary["model"], run.summary["data"]) for run in runs}
    sources = sorted({published.source for key, published in PUBLISHED.items() if key in keys})
    return [
        *([f"These runs were made under different versions: {'; '.join(differing)}."] if differing else []),
        *([f"Published numbers: {'; '.join(sources)}."] if sources else []),
    ]


def facts(runs: Sequence[Run]) -> Mapping[str, str]:
    """Versions, machines and seeds, each with all of its values.

    The exact command cannot be known; the options that were given are in every run's ``config.yaml``.
    """
    summaries = pd.DataFrame([run.summary for run in runs])
    return {
        "preset": several(map(_preset, runs)),
        "commit": several(summaries["git_commit"]),
        "torch": several(summaries["torch_version"]),
        "torchvision": several(summaries["torchvision_version"]),
        "python": several(summaries["python_version"]),
        "hardware": several(summaries["hardware"]),
        "device": several(summaries["device"]),
        "seeds": ", ".join(map(str, sorted(set(summaries["seed"])))),
    }


def _preset(run: Run) -> str | None:
    return " ".join(f"{key}={run.summary[key]}" for key in ("experiment", "scale") if run.summary[key]) or None
