"""Report on disk: ``report.md`` with its tables, and the plots it shows.

A table has a row a group, and only the columns that the runs have values for.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from counterflow.report.groups import TEST, VALIDATION, Accuracy, Comparison, ConfigGroup, differing_options, show
from counterflow.report.line_plots import save
from counterflow.report.plot_selection import Plot, plots
from counterflow.report.runs import Run

_TESTED_AGAIN = "†"
_VIEWS = Accuracy("test, with test-time augmentation", "test_tta_accuracy")
_SEQUENCES = Accuracy("test sequence", "test_sequence_accuracy")
_VERSIONS = {
    "torch": "torch_version",
    "torchvision": "torchvision_version",
    "commit": "git_commit",
    "hardware": "hardware",
}
_FOLDER = "figures"
_HASH = 12
"""Digits of a hash that are shown."""
_READING = """\
Accuracies are mean ± sample standard deviation over seeds. Gaps are to backprop on the same network, data and number of
batches, of the same experiment and scale. Of parameters, the effective ones predict and the affiliated ones only help
to learn. Extra FLOPs are what training takes beyond backprop of the same network, as a share of that: heads, feedback
and bridges, less the gradients that never leave a block. Speeds are compared on equal machines only."""


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


def write_report(
    folder: Path, title: str, command: str, comparisons: Sequence[Comparison], unfinished: Sequence[Path]
) -> None:
    """Make ``folder/report.md`` and ``folder/figures/``; plots of an earlier report are removed.

    Args:
        folder: Made if it is not there.
        title: Heading of the report.
        command: The command line that makes it.
        comparisons: One section each.
        unfinished: Run directories without a summary.
    """
    page = folder / "report.md"
    (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
    earlier = re.findall(rf"\]\({_FOLDER}/([\w.-]+)\.png\)", page.read_text()) if page.exists() else []
    for name, ending in product(set(earlier), ("png", "svg")):
        (folder / _FOLDER / f"{name}.{ending}").unlink(missing_ok=True)
    count = sum(len(comparison.runs) for comparison in comparisons)
    made = f"Of {count} finished run{'s' * (count != 1)}; made by\n\n```\n{command}\n```"
    lines = [f"# {title}", made, _READING]
    for comparison in comparisons:
        shown = list(plots(comparison))
        for plot in shown:
            save(plot.draw, folder / _FOLDER / plot.name)
        lines += [f"## {comparison.title}", *_section(comparison, shown)]
    repeated = [run.path for comparison in comparisons for run in comparison.repeated]
    left_out = {
        "Unfinished, without `summary.json`": unfinished,
        "Of the same seed and options as another run above": repeated,
    }
    if unfinished or repeated:
        lines.append("## Left out")
    lines += [_items(reason, [f"`{path.as_posix()}`" for path in paths]) for reason, paths in left_out.items() if paths]
    page.write_text("\n\n".join(lines) + "\n")


def provenance(runs: Sequence[Run], table_runs: Sequence[Run] = ()) -> str:
    """Versions, machines and the runs themselves, as Markdown that can be folded away.

    The exact command cannot be known; the options that were given are in every run's ``config.yaml``.

    Args:
        runs: Runs to describe.
        table_runs: Runs that a table above lists already: they are not listed again.
    """
    ordered = sorted(runs, key=lambda run: run.path)
    summaries = pd.DataFrame([run.summary for run in ordered])
    facts = {
        "preset": _several(map(_preset, ordered)),
        "commit": _several(summaries["git_commit"]),
        "torch": _several(summaries["torch_version"]),
        "torchvision": _several(summaries["torchvision_version"]),
        "python": _several(summaries["python_version"]),
        "hardware": _several(summaries["hardware"]),
        "device": _several(summaries["device"]),
        "seeds": ", ".join(map(str, sorted(set(summaries["seed"])))),
    }
    if len(runs) == len(table_runs):
        facts["runs"] = "all of the table's"
    elif table_runs:
        facts["configurations"] = ", ".join(sorted({f"`{digest[:_HASH]}`" for digest in summaries["config_hash"]}))
    lines = [
        "<details><summary>Where this comes from</summary>",
        "",
        *(f"- {name}: {text}" for name, text in facts.items()),
    ]
    if not table_runs:
        lines += [
            "",
            markdown(
                pd.DataFrame(
                    {
                        "run": [f"`{run.path.as_posix()}`" for run in ordered],
                        "seed": summaries["seed"].astype(str),
                        "configuration": [f"`{digest[:_HASH]}`" for digest in summaries["config_hash"]],
                        "fingerprint": [f"`{(run.summary['fingerprint'] or 'none')[:_HASH]}`" for run in ordered],
                    }
                )
            ),
        ]
    return "\n".join([*lines, "", "</details>"])


def _section(comparison: Comparison, shown: Sequence[Plot]) -> Iterator[str]:
    runs = comparison.runs
    yield markdown(table(comparison))
    summaries = pd.DataFrame([run.summary for run in runs])
    versions = {name: sorted(summaries[column].dropna().unique()) for name, column in _VERSIONS.items()}
    differing = [f"{name} {', '.join(values)}" for name, values in versions.items() if len(values) > 1]
    if differing:
        yield f"These runs were made under different versions: {'; '.join(differing)}."
    again = [f"`{run.path.as_posix()}`: {run.tests} times" for run in runs if run.tests > 1]
    if again:
        yield _items(f"{_TESTED_AGAIN} Test data was looked at more than once", again)
    keys = {(run.summary["algorithm"], run.summary["model"], run.summary["data"]) for run in runs}
    sources = sorted({published.source for key, published in PUBLISHED.items() if key in keys})
    if sources:
        yield "Published numbers: " + "; ".join(sources) + "."
    yield provenance(runs)
    for plot in shown:
        image = f"{_FOLDER}/{plot.name}"
        yield f"![{plot.caption}]({image}.png)"
        yield f"{plot.caption} ([SVG]({image}.svg))"
        yield provenance([run for group in plot.groups for run in group.runs], table_runs=runs)


def _several(values: Iterable[str | None]) -> str:
    return ", ".join(sorted({"not recorded" if pd.isna(value) else str(value) for value in values}))


def _preset(run: Run) -> str | None:
    text = " ".join(f"{key}={run.summary[key]}" for key in ("experiment", "scale") if run.summary[key])
    return f"`{text}`" if text else None


def _items(name: str, texts: Sequence[str]) -> str:
    return "\n".join([f"{name}:\n", *(f"- {text}" for text in texts)])


def table(comparison: Comparison) -> pd.DataFrame:
    """The cells as text. A cell without a value is empty; columns of empty cells are left out."""
    groups = comparison.groups
    baselines = pd.Series([comparison.baseline(group) for group in groups], dtype=float)
    published = "published" if comparison.scale == "full" else "published for the full-size network"
    speeds = pd.Series([group.summaries["samples_per_second"].mean() for group in groups])
    literature = [PUBLISHED.get((g.first["algorithm"], g.first["model"], g.first["data"])) for g in groups]
    own_columns = ("algorithm.name", "model.name", "data.name", "blocks", "scale")
    ranks = [sorted({run.summary["ranks"] or 1 for run in group.runs}) for group in groups]
    columns = {
        "algorithm": [group.name for group in groups],
        "model": [group.first["model"] for group in groups],
        "data": [group.first["data"] for group in groups],
        "blocks": [str(group.first["blocks"]) for group in groups],
        "options": [
            ", ".join(f"{key}={show(value)}" for key, value in options.items())
            for options in differing_options(groups, per_algorithm=False, without=own_columns)
        ],
        "processes": ["" if all(count == [1] for count in ranks) else ", ".join(map(str, count)) for count in ranks],
        "test accuracy [%]": [_spread(group, TEST) for group in groups],
        "with test-time augmentation [%]": [_spread(group, _VIEWS) for group in groups],
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


def _texts(values: pd.Series, text: str) -> Sequence[str]:
    """Values by a format; empty for NaN."""
    return ["" if pd.isna(value) else text.format(value) for value in values]


def _spread(group: ConfigGroup, accuracy: Accuracy) -> str:
    """Mean and deviation; the number of seeds if not all have a value, and a mark if test data was used again."""
    mean, deviation, count = accuracy.of([group]).iloc[0]
    if not count:
        return ""
    text = f"{mean:.2f}" if pd.isna(deviation) else f"{mean:.2f} ± {deviation:.2f}"
    if count < len(group.runs):
        text += f" (of {count:.0f})"
    return f"{text} {_TESTED_AGAIN}" if accuracy is TEST and any(run.tests > 1 for run in group.runs) else text


def _gaps(groups: Sequence[ConfigGroup], baselines: pd.Series, accuracy: Accuracy) -> Sequence[str]:
    """Differences of the means to those of the baselines; empty where one is unknown."""
    means = accuracy.of(groups)["mean"]
    return _texts(means - baselines.map(means), "{:+.2f}")


def _speedups(groups: Sequence[ConfigGroup], baselines: pd.Series, speeds: pd.Series) -> pd.Series:
    """Speeds over those of the baselines; NaN if the two ran on different machines."""
    machines = pd.Series([{(run.summary["device"], run.summary["hardware"]) for run in group.runs} for group in groups])
    same = (machines.map(len) == 1) & (machines == baselines.map(machines))
    return (speeds / baselines.map(speeds)).where(same)
