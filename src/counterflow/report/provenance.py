"""Where numbers came from: versions, machines, and the runs themselves."""

from collections.abc import Iterable, Sequence

from counterflow.report.run import Run

_HASH = 12
"""Digits of a hash that are shown."""


def provenance(runs: Sequence[Run], of: Sequence[Run] = ()) -> str:
    """Markdown that can be folded away. ``of`` are runs that a table above lists already: they are not listed again.

    What cannot be known is the exact command; the options that were given are in every run's ``config.yaml``.
    """
    summaries = [run.summary for run in runs]
    facts = {
        "preset": _several(_preset(run) for run in runs),
        "commit": _several(s.git_commit for s in summaries),
        "torch": _several(s.torch_version for s in summaries),
        "torchvision": _several(s.torchvision_version for s in summaries),
        "python": _several(s.python_version for s in summaries),
        "hardware": _several(s.hardware for s in summaries),
        "device": _several(s.device for s in summaries),
        "seeds": ", ".join(map(str, sorted({s.seed for s in summaries}))),
    }
    lines = ["<details><summary>Where this comes from</summary>", ""]
    lines += [f"- {name}: {text}" for name, text in facts.items()]
    if of:
        hashes = sorted({f"`{run.config_hash[:_HASH]}`" for run in runs})
        lines.append("- runs: all of the table's" if len(runs) == len(of) else f"- configurations: {', '.join(hashes)}")
    else:
        lines += ["", "| run | seed | configuration | fingerprint |", "| --- | ---: | --- | --- |"]
        for run in sorted(runs, key=lambda run: run.path):
            digests = f"`{run.config_hash[:_HASH]}` | `{(run.summary.fingerprint or 'none')[:_HASH]}`"
            lines.append(f"| `{run.path.as_posix()}` | {run.summary.seed} | {digests} |")
    return "\n".join([*lines, "", "</details>"])


def _several(values: Iterable[str | None]) -> str:
    return ", ".join(sorted({value or "not recorded" for value in values}))


def _preset(run: Run) -> str | None:
    given = [(key, value) for key, value in (("experiment", run.experiment), ("scale", run.scale)) if value]
    return f"`{' '.join(f'{key}={value}' for key, value in given)}`" if given else None
