"""The learning system of a run: local rules on the free engine, or a reference on a pipeline schedule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from counterflow.algorithms import ALGORITHMS, REFERENCES
from counterflow.engine import free
from counterflow.engine.job import Job
from counterflow.engine.outcome import Outcome
from counterflow.engine.station import Observer, Waits
from counterflow.models.partition import layer_counts, output_shapes, partition
from counterflow.transport import World

Figures = Sequence[Mapping[str, float]]
"""What all blocks reported about one batch, bottom to top."""


@dataclass(frozen=True)
class System:
    run: Callable[[World, Observer, Waits], Outcome]
    """This rank's part of the run, to its end."""
    objective: Callable[[Figures], Mapping[str, float]]
    """The figures of the whole system from those of its blocks."""
    owners: Sequence[int]
    """The rank of each block, bottom to top."""


def cut(job: Job, world: World) -> list[int]:
    """Layers of every block. Measured costs differ from rank to rank and run to run: rank 0's count."""
    example = job.batches.inputs(0)
    wanted = job.config.model.cut
    if wanted == "measured":
        mine = layer_counts(job.network, job.topology.blocks, wanted, example) if world.rank == 0 else None
        counts = world.gather(mine, "the measured cut")[0]
        assert isinstance(counts, list)
        return counts
    return layer_counts(job.network, job.topology.blocks, wanted, example)


def build(job: Job, counts: Sequence[int]) -> System:
    """The system that ``algorithm=`` and ``schedule=`` name, over blocks of ``counts`` layers."""
    config, example = job.config, job.batches.inputs(0)
    name = config.algorithm.name
    if name in REFERENCES:
        REFERENCES[name].transform(job.network, config.seed)
    blocks = partition(job.network, job.topology.blocks, counts, example)
    shapes = output_shapes(blocks, example)
    if name in REFERENCES:
        from counterflow.engine import scheduled  # a second of import, for every process that waits for nobody

        pipeline = scheduled.Pipeline(job, blocks, shapes)
        return System(pipeline.run, scheduled.objective, pipeline.owners)
    algorithm = ALGORITHMS[name](
        config.algorithm, config.optimizer, blocks, shapes, job.task, job.plan.batches, config.seed
    )
    owners = [job.topology.rank_of(block) for block in range(1, job.topology.blocks + 1)]
    return System(partial(free.run, job, algorithm), algorithm.objective, owners)
