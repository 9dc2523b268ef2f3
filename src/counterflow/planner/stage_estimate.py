"""Estimates of the stages of a partition: time and memory, under a local rule and under a pipeline of backprop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from counterflow.planner.model_profile import LayerProfile, ModelProfile
from counterflow.schedule.forecast import StageCost, Workload

_SEND_BUFFERS = 2
"""Messages that a process holds for each edge that it sends to: one is filled while the other one is being sent."""


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """Seconds and bytes of a block on a machine, for one update batch."""

    cost: StageCost
    states: int
    """Bytes of parameters, gradients and optimizer states."""
    kept: int
    """Bytes held from forward to backward."""
    up: int
    """Bytes of the message to the stage above."""
    down: int
    """Bytes of the message from the stage above."""

    @property
    def seconds(self) -> float:
        return self.cost.forward + self.cost.backward + self.cost.update + self.cost.target


StageOf = Callable[[int, int], StageEstimate]
"""Estimate of the stage of the layers ``start .. end - 1``, from ``start`` and ``end``."""


def local_stage(profile: ModelProfile, speed: float) -> StageOf:
    """Estimates under the local rule, on processes that are ``speed`` times as fast as this one."""
    layers, total = profile.layers, _totals(profile.layers)

    def stage(start: int, end: int) -> StageEstimate:
        extra = layers[end - 1].block_overhead
        return StageEstimate(
            cost=StageCost(
                forward=(total("forward", start, end) + extra.forward) / speed,
                backward=(total("backward", start, end) - layers[start].entrance + extra.learn) / speed,
                update=total("update", start, end) / speed,
                target=extra.target / speed,
            ),
            states=profile.copies * int(total("parameters", start, end) + extra.parameters),
            kept=int(total("kept", start, end)) + extra.kept,
            up=extra.up,
            down=extra.down,
        )

    return stage


def backprop_stage(profile: ModelProfile, speed: float, microbatches: int) -> StageOf:
    """Estimates under a pipeline of ``microbatches``: activations go up, and gradients of the same size come down."""
    layers, total, more = profile.layers, _totals(profile.layers), microbatches - 1

    def stage(start: int, end: int) -> StageEstimate:
        saved = layers[0].entrance if start == 0 else 0.0
        forward = total("forward", start, end) + more * total("fixed_forward", start, end)
        backward = total("backward", start, end) + more * total("fixed_backward", start, end) - saved
        return StageEstimate(
            cost=StageCost(forward / speed, backward / speed, total("update", start, end) / speed),
            states=profile.copies * int(total("parameters", start, end)),
            kept=int(total("kept", start, end)),
            up=layers[end - 1].output,
            down=layers[end - 1].output,
        )

    return stage


def stages_of(stage: StageOf, counts: Sequence[int]) -> list[StageEstimate]:
    """Estimates of blocks of ``counts`` layers."""
    return [stage(start, end) for start, end in pairwise([0, *accumulate(counts)])]


def workload(stages: Sequence[StageEstimate]) -> Workload:
    """Costs and message sizes of ``stages``, for the simulator."""
    down = [stage.down for stage in stages[:-1]]
    return Workload([stage.cost for stage in stages], [stage.up for stage in stages[:-1]], down if any(down) else ())


def local_memory(stages: Sequence[StageEstimate], lag: int, depth: int) -> list[int]:
    """Largest number of bytes of each rank under the local rule.

    They are its states, tensors held for one batch, ``depth`` received messages and the one that it works on, its send
    buffers, and the targets of later batches.
    """
    below = [0, *(stage.up for stage in stages)]
    return [
        stage.states + stage.kept + (depth + 1) * below[i] + _SEND_BUFFERS * stage.up + lag * (i + 1) * stage.down
        for i, stage in enumerate(stages)
    ]


def backprop_memory(stages: Sequence[StageEstimate], in_flight: Sequence[float], microbatches: int) -> list[int]:
    """Largest number of bytes of each rank under a pipeline.

    ``in_flight`` are the batches, or parts of one, that wait for their gradients in each stage.
    """
    below = [0, *(stage.up for stage in stages)]
    return [
        stage.states + int(held * (stage.kept + below[i])) + _SEND_BUFFERS * (stage.up + stage.down) // microbatches
        for i, (stage, held) in enumerate(zip(stages, in_flight, strict=True))
    ]


def _totals(layers: Sequence[LayerProfile]) -> Callable[[str, int, int], float]:
    """Sum of an attribute over the layers ``start .. end - 1``, from its name, ``start`` and ``end``."""
    names = ("forward", "backward", "update", "fixed_forward", "fixed_backward", "parameters", "kept")
    ends = {name: [0.0, *accumulate(getattr(layer, name) for layer in layers)] for name in names}
    return lambda name, start, end: ends[name][end] - ends[name][start]
