"""Report on disk: ``report.md`` and the plots it shows."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from counterflow.report.groups import Comparison
from counterflow.report.literature import PUBLISHED
from counterflow.report.plot_selection import Plot, plots
from counterflow.report.plot_style import save
from counterflow.report.runs import Run
from counterflow.report.tables import TESTED_AGAIN, markdown, table, version_note

_FOLDER = "figures"
_NAME = "report.md"
_HASH = 12
"""Digits of a hash that are shown."""
_READING = """\
Accuracies are mean ± sample standard deviation over seeds. Gaps are to backprop on the same network, data and number of
batches, of the same experiment and scale. Of parameters, the effective ones predict and the affiliated ones only help
to learn. Extra FLOPs are what training takes beyond backprop of the same network, as a share of that: heads, feedback
and bridges, less the gradients that never leave a block. Speeds are compared on equal machines only."""


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
    page = folder / _NAME
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
    summaries = _summaries(runs)
    facts = {
        "preset": _several(map(_preset, runs)),
        "commit": _several(summaries["git_commit"]),
        "torch": _several(summaries["torch_version"]),
        "torchvision": _several(summaries["torchvision_version"]),
        "python": _several(summaries["python_version"]),
        "hardware": _several(summaries["hardware"]),
        "device": _several(summaries["device"]),
        "seeds": ", ".join(map(str, sorted(set(summaries["seed"])))),
    }
    lines = ["<details><summary>Where this comes from</summary>", ""]
    lines += [f"- {name}: {text}" for name, text in facts.items()]
    if table_runs:
        hashes = ", ".join(sorted({f"`{digest[:_HASH]}`" for digest in summaries["config_hash"]}))
        lines.append("- runs: all of the table's" if len(runs) == len(table_runs) else f"- configurations: {hashes}")
    else:
        lines += ["", "| run | seed | configuration | fingerprint |", "| --- | ---: | --- | --- |"]
        for run in sorted(runs, key=lambda run: run.path):
            digests = (run.summary["config_hash"], run.summary["fingerprint"])
            cells = " | ".join(f"`{(digest or 'none')[:_HASH]}`" for digest in digests)
            lines.append(f"| `{run.path.as_posix()}` | {run.summary['seed']} | {cells} |")
    return "\n".join([*lines, "", "</details>"])


def _section(comparison: Comparison, shown: Sequence[Plot]) -> Iterator[str]:
    runs = comparison.runs
    yield markdown(table(comparison))
    note = version_note(_summaries(runs))
    if note:
        yield note
    again = [f"`{run.path.as_posix()}`: {run.tests} times" for run in runs if run.tests > 1]
    if again:
        yield _items(f"{TESTED_AGAIN} Test data was looked at more than once", again)
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


def _summaries(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame([run.summary for run in runs])


def _several(values: Iterable[str | None]) -> str:
    return ", ".join(sorted({"not recorded" if pd.isna(value) else str(value) for value in values}))


def _preset(run: Run) -> str | None:
    given = {"experiment": run.summary["experiment"], "scale": run.summary["scale"]}
    text = " ".join(f"{key}={value}" for key, value in given.items() if value)
    return f"`{text}`" if text else None


def _items(name: str, texts: Sequence[str]) -> str:
    return "\n".join([f"{name}:\n", *(f"- {text}" for text in texts)])
