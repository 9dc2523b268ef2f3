"""Writes a report: ``report.md`` and the figures it shows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from counterflow.report.comparison import Comparison
from counterflow.report.figures import Plot, figures
from counterflow.report.provenance import provenance
from counterflow.report.published import PUBLISHED
from counterflow.report.run import Run
from counterflow.report.style import save
from counterflow.report.table import LOOKED_AGAIN, table

_FIGURES = "figures"
_NAME = "report.md"
_READING = """\
Accuracies are mean ± sample standard deviation over seeds. Gaps are to backprop on the same network, data and number of
batches, of the same experiment and scale. Of parameters, the effective ones predict and the affiliated ones only help
to learn. Extra FLOPs are what training takes beyond backprop of the same network, as a share of that: heads, feedback
and bridges, less the gradients that never leave a block. Speeds are compared on equal machines only."""


@dataclass(frozen=True)
class Document:
    title: str
    command: str
    """That made it."""
    comparisons: Sequence[Comparison]
    unfinished: Sequence[Path]
    """Run directories without a summary."""

    def write(self, folder: Path) -> None:
        """Make ``folder/report.md`` and ``folder/figures/``; figures that an earlier report showed go away."""
        page = folder / _NAME
        (folder / _FIGURES).mkdir(parents=True, exist_ok=True)
        if page.exists():
            for name in set(re.findall(rf"\]\({_FIGURES}/([\w.-]+)\.png\)", page.read_text())):
                for ending in ("png", "svg"):
                    (folder / _FIGURES / f"{name}.{ending}").unlink(missing_ok=True)
        plots = {id(comparison): list(figures(comparison)) for comparison in self.comparisons}
        for plot in (plot for found in plots.values() for plot in found):
            save(plot.draw, folder / _FIGURES / plot.name)
        lines = [f"# {self.title}", *self._summary()]
        for comparison in self.comparisons:
            lines += [f"## {comparison.title}", *_section(comparison, plots[id(comparison)])]
        page.write_text("\n\n".join([*lines, *self._left_out()]) + "\n")

    def _summary(self) -> Iterator[str]:
        count = sum(len(group.runs) for comparison in self.comparisons for group in comparison.groups)
        yield f"Of {count} finished run{'s' * (count != 1)}; made by\n\n```\n{self.command}\n```"
        yield _READING

    def _left_out(self) -> Iterator[str]:
        repeated = [run.path for comparison in self.comparisons for run in comparison.repeated]
        if not (self.unfinished or repeated):
            return
        yield "## Left out"
        if self.unfinished:
            yield "Unfinished, without `summary.json`:\n\n" + _items(self.unfinished)
        if repeated:
            yield "Of the same seed and options as another run above:\n\n" + _items(repeated)


def _section(comparison: Comparison, plots: Sequence[Plot]) -> Iterator[str]:
    runs = [run for group in comparison.groups for run in group.runs]
    yield table(comparison).markdown()
    again = [run for run in runs if run.tests > 1]
    if again:
        yield f"{LOOKED_AGAIN} Test data was looked at more than once:\n\n" + "\n".join(
            f"- `{run.path.as_posix()}`: {run.tests} times" for run in again
        )
    sources = _sources(runs)
    if sources:
        yield "Published numbers: " + "; ".join(sources) + "."
    yield provenance(runs)
    for plot in plots:
        image = f"{_FIGURES}/{plot.name}"
        yield f"![{plot.caption}]({image}.png)"
        yield f"{plot.caption} ([SVG]({image}.svg))"
        yield provenance([run for group in plot.groups for run in group.runs], of=runs)


def _sources(runs: Sequence[Run]) -> Sequence[str]:
    keys = {(run.summary.algorithm, run.summary.model, run.summary.data) for run in runs}
    return sorted({published.source for key, published in PUBLISHED.items() if key in keys})


def _items(paths: Sequence[Path]) -> str:
    return "\n".join(f"- `{path.as_posix()}`" for path in paths)
