"""The stages of a cut: what each of them takes and holds, under a local rule and under a pipeline of backprop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from counterflow.planner.network import Layer, Network
from counterflow.schedule.load import Load, StageTimes

_SENT = 2
"""Messages that a process holds for each edge that it sends to: one is filled while the other one is under way."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A block on a machine: seconds and bytes of one update batch."""

    times: StageTimes
    states: int
    """Bytes of parameters, gradients, and what the optimizer keeps."""
    kept: int
    """Bytes from forward to backward."""
    up: int
    down: int

    @property
    def seconds(self) -> float:
        return self.times.forward + self.times.backward + self.times.update + self.times.target


StageOf = Callable[[int, int], Stage]
"""The stage of the layers ``start .. end - 1``."""


def local(network: Network, speed: float) -> StageOf:
    """Under the local rule."""
    sums = _Sums(network.layers)

    def stage(start: int, end: int) -> Stage:
        head = network.layers[end - 1].head
        spared = network.layers[start].entrance
        return Stage(
            times=StageTimes(
                forward=(sums.of("forward", start, end) + head.forward) / speed,
                backward=(sums.of("backward", start, end) - spared + head.learn) / speed,
                update=sums.of("update", start, end) / speed,
                target=head.target / speed,
            ),
            states=network.copies * int(sums.of("parameters", start, end) + head.parameters),
            kept=int(sums.of("kept", start, end)) + head.kept,
            up=head.up,
            down=head.down,
        )

    return stage


def backprop(network: Network, speed: float, microbatches: int) -> StageOf:
    """Under a pipeline that sends ``microbatches`` parts of a batch: activations go up, their gradients come down."""
    sums, more = _Sums(network.layers), microbatches - 1

    def stage(start: int, end: int) -> Stage:
        spared = network.layers[0].entrance if start == 0 else 0.0
        forward = sums.of("forward", start, end) + more * sums.of("fixed_forward", start, end)
        backward = sums.of("backward", start, end) + more * sums.of("fixed_backward", start, end) - spared
        output = network.layers[end - 1].output
        return Stage(
            times=StageTimes(forward / speed, backward / speed, sums.of("update", start, end) / speed),
            states=network.copies * int(sums.of("parameters", start, end)),
            kept=int(sums.of("kept", start, end)),
            up=output,
            down=output,
        )

    return stage


def cut(stage: StageOf, counts: Sequence[int]) -> list[Stage]:
    """The stages of blocks of ``counts`` layers."""
    ends = [0, *accumulate(counts)]
    return [stage(start, end) for start, end in pairwise(ends)]


def load(stages: Sequence[Stage]) -> Load:
    up, down = [stage.up for stage in stages[:-1]], [stage.down for stage in stages[:-1]]
    return Load([stage.times for stage in stages], up, down if any(down) else ())


def local_memory(stages: Sequence[Stage], lag: int, depth: int) -> list[int]:
    """Bytes that each rank holds at most: states, what one batch keeps, and messages: ``depth`` that wait and the one
    in its hands, those that leave, and the targets of later batches."""
    below = [0, *(stage.up for stage in stages)]
    return [
        stage.states + stage.kept + (depth + 1) * below[i] + _SENT * stage.up + lag * (i + 1) * stage.down
        for i, stage in enumerate(stages)
    ]


def backprop_memory(stages: Sequence[Stage], in_flight: Sequence[float], microbatches: int) -> list[int]:
    """The same, where the parts of a batch that wait for their gradients in each stage are ``in_flight`` batches."""
    below = [0, *(stage.up for stage in stages)]
    return [
        stage.states + int(held * (stage.kept + below[i])) + _SENT * (stage.up + stage.down) // microbatches
        for i, (stage, held) in enumerate(zip(stages, in_flight, strict=True))
    ]


class _Sums:
    """Of consecutive layers, by the name of what is summed up."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        names = ("forward", "backward", "update", "fixed_forward", "fixed_backward", "parameters", "kept")
        self._ends: dict[str, list[float]] = {
            name: [0.0, *accumulate(getattr(layer, name) for layer in layers)] for name in names
        }

    def of(self, name: str, start: int, end: int) -> float:
        ends = self._ends[name]
        return ends[end] - ends[start]
