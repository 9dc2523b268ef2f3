"""Arithmetic of block-local learning beyond backprop's: feedback, latent heads and local losses, by torch's counter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.bench import figures
from counterflow.bench.brief import Brief
from counterflow.bench.crew import Setting, run
from counterflow.bench.entrants import common, noise
from counterflow.bench.row import Goal, Result, StepMetrics
from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig
from counterflow.engine import cost as costs
from counterflow.engine.cost import Flops
from counterflow.engine.factory import choose_partition
from counterflow.engine.job import build_job
from counterflow.engine.profile import column_of
from counterflow.transport import Communicator

_MODELS = ("resnet18", "resnet20", "resnet32", "resnet50")
_BLOCKS = 4
_HEADS = (0, 1, 3)
"""Convolutions of latent heads."""
_BATCH = 128
_MOST = 0.08
_LIMIT = 300.0


def measure(brief: Brief) -> Result:
    noise(brief.folder, 2 * _BATCH, pixels=32, channels=3)
    found = []
    for model in _MODELS:
        for convolutions in _HEADS:
            head = f"{convolutions} convolutions and pooling" if convolutions else "pooled head"
            brief.log(f"{model}, {head}")
            wanted = [f"model={model}", "algorithm=bll", f"algorithm.latent.convolutions={convolutions}"]
            config = load_config(brief.conf, [*common(brief.folder, _BATCH), f"blocks={_BLOCKS}", *wanted])
            (cost,) = run(Setting(_LIMIT), 1, count, config)
            found.append(
                StepMetrics(name=f"{model}, {head}", ranks=1, batch=_BATCH).having(
                    model=model,
                    convolutions=float(convolutions),
                    network_mflops=cost.forward / 1e6,
                    backprop_mflops=cost.backprop / 1e6,
                    share_beyond_backprop=cost.learning / cost.backprop - 1,
                )
            )
    worst = max(float(row.more["share_beyond_backprop"] or 0) for row in found if row.more["convolutions"] == 0)
    settings = {"images": "3 x 32 x 32", "blocks": _BLOCKS, "batch": _BATCH}
    return Result("flops", settings, found, [Goal("pooled head, most of all ResNets", _MOST, worst, at_most=True)])


def count(comm: Communicator, config: TrainConfig) -> Flops:
    """FLOPs for each sample, of all blocks."""
    job = build_job(config, comm.size)
    column = column_of(job, choose_partition(job))
    blocks = range(1, config.blocks + 1)
    return sum((costs.local(column, block, column.rule(block), job) for block in blocks), Flops(0, 0, 0))


def draw(note: Mapping[str, Any], folder: Path) -> None:
    """A bar for each network and head."""
    rows = note["rows"][::-1]

    def paint(figure: Figure, axes: Sequence[Axes]) -> None:
        percent = [100 * row["share_beyond_backprop"] for row in rows]
        axes[0].barh(range(len(rows)), percent, color=figures.colour("BLL"))
        axes[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes[0].axvline(100 * _MOST, color="black", linewidth=1, linestyle=":")
        axes[0].set_xlabel("FLOPs beyond backprop's [%]")

    figures.save(folder / "flops.png", 1, 1, 0.3 * len(rows) + 1, paint)
