"""Predicts, before anything is built, how fast a network trains under a schedule, who waits and what is held."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from counterflow.schedule.account import Account, Window
from counterflow.schedule.clock import Channel, Part, Step, Timetable, Verb, run
from counterflow.schedule.load import Link, Load
from counterflow.schedule.local_schedule import Action, Op, rank_program
from counterflow.schedule.pipelines import PIPELINES, Move, Task, blocks_of_stages, owners, tasks
from counterflow.schedule.run_plan import RunPlan
from counterflow.schedule.steps import BUFFERED, Endpoint, joints, steps
from counterflow.topology import Edge, Stream, Topology

Jitter = Callable[[int, int], float]
"""By which factor a block (counted from 1) takes longer with an update batch (counted from 0)."""

SCHEDULES = ("free", *PIPELINES)

_SEND_BUFFERS = 2
"""Of an edge of the free engine: one is filled while the other one is under way."""


_COMPUTES = (Move.FORWARD, Move.BACKWARD, Move.INPUT, Move.WEIGHT, Move.UPDATE)
_MESSAGES = {
    Move.FORWARD: (Verb.TAKE, True, 1),
    Move.BACKWARD: (Verb.TAKE, False, 0),
    Move.INPUT: (Verb.TAKE, False, 0),
    Move.RECEIVE_UP: (Verb.POST, True, 1),
    Move.SEND_UP: (Verb.SEND, True, 0),
    Move.SENT_UP: (Verb.SENT, True, 0),
    Move.RECEIVE_DOWN: (Verb.POST, False, 0),
    Move.SEND_DOWN: (Verb.SEND, False, 1),
    Move.SENT_DOWN: (Verb.SENT, False, 1),
}
"""What a move does with a channel: whether that goes up, and how far below the stage its lower end is."""


@dataclass(frozen=True)
class Forecast:
    seconds_per_batch: float
    """Of an update batch in the slowest rank, in steady state."""
    wait_fraction: list[float]
    """Share of its steady state that each rank waits for messages and for its sends."""
    in_flight: list[float]
    """The most activations that each rank holds to learn from them; 1.0 are those of one block for an update batch."""
    buffered: list[float]
    """Messages of an update batch for which each rank's channels have activation buffers (free only)."""
    fill: float
    """Seconds until the last rank has its first activation."""
    timetable: Timetable[Action] | Timetable[Task] | None
    """What each rank did when, if that was kept."""


def forecast(
    schedule: str,
    load: Load,
    *,
    ranks: int,
    batches: int,
    microbatches: int = 1,
    lag: int = 2,
    depth: int = 2,
    link: Link | None = None,
    jitter: Jitter | None = None,
    overhead: float = 0.0,
    keep: bool = True,
) -> Forecast:
    """Simulate ``batches`` update batches of one of `SCHEDULES` on ``ranks``; the second half counts as steady state.

    ``microbatches`` are those of pipelines, except of ``sequential``, the network split over the ranks without any;
    ``lag`` and ``depth`` are those of the free engine. Every action costs its rank ``overhead`` seconds beside. On one
    rank pipelines are the plain loop. ``keep`` the timetable, or do not if it is a large one.

    Raises ``ValueError`` for what no run allows.
    """
    topology, link = Topology(len(load.stages), ranks), link or Link()
    _check(schedule, topology, batches, microbatches, lag, depth, overhead)
    costs = _Costs(load, link, jitter, overhead)
    if schedule == "free":
        trip = (topology.blocks - 1) * lag + 1 if load.down else 1
        local = Account(ranks, Window.of(batches, ranks, trip), _held_by_action, keep)
        run(_free(topology, costs, batches, lag, depth), local.record)
        return _forecast(local, [(depth + 1.0) * (r > 0) + _SEND_BUFFERS * (r < ranks - 1) for r in range(ranks)])
    if ranks == 1:
        schedule = "sequential"
    if schedule == "sequential":
        microbatches = 1
    stages = blocks_of_stages(schedule, topology)
    account = Account(ranks, Window.of(batches, len(stages), 1), _held_by_task(stages, microbatches), keep)
    run(_pipelined(schedule, ranks, stages, costs, batches, microbatches), account.record)
    return _forecast(account, [0.0] * ranks)


def _check(
    schedule: str, topology: Topology, batches: int, microbatches: int, lag: int, depth: int, overhead: float
) -> None:
    blocks, ranks = topology.blocks, topology.ranks
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule}: must be one of {', '.join(SCHEDULES)}")
    for name, value, least in (("batches", batches, 2), ("microbatches", microbatches, 1), ("depth", depth, 1)):
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    if lag < (ranks > 1):
        raise ValueError(f"lag={lag}: must be at least {int(ranks > 1)} on ranks={ranks}")
    if not overhead >= 0:
        raise ValueError(f"overhead={overhead}: must be at least 0 seconds")
    if ranks == 1:
        return
    if schedule in ("1f1b", "zbh1") and microbatches < ranks:
        raise ValueError(f"microbatches={microbatches}: schedule={schedule} needs one for each of ranks={ranks}")
    if schedule == "interleaved1f1b" and (blocks % ranks or blocks == ranks or microbatches % ranks):
        raise ValueError(
            f"schedule=interleaved1f1b: blocks={blocks} must be a multiple of ranks={ranks}, and more; "
            f"microbatches={microbatches} must be a multiple of ranks"
        )
    if schedule == "zbv" and (blocks != 2 * ranks or microbatches < 2 * ranks):
        raise ValueError(
            f"schedule=zbv: blocks={blocks} must be {2 * ranks}, two for each rank; "
            f"microbatches={microbatches} must be at least {2 * ranks}"
        )


@dataclass(frozen=True)
class _Costs:
    load: Load
    link: Link
    jitter: Jitter | None
    overhead: float

    def of(self, block: int, n: int, seconds: float) -> float:
        return seconds if self.jitter is None else seconds * self.jitter(block, n)

    def channel(self, source: int, destination: int, size: float, posted: int = 0, buffers: int = 0) -> Channel:
        link = self.link
        return Channel(source, destination, posted, buffers, size / link.bandwidth, link.latency, credit=link.latency)


def _forecast(account: Account[Action] | Account[Task], buffered: Sequence[float]) -> Forecast:
    return Forecast(
        seconds_per_batch=account.seconds_per_batch,
        wait_fraction=account.wait_fraction,
        in_flight=account.in_flight,
        buffered=list(buffered),
        fill=account.fill,
        timetable=account.timetable,
    )


def _free(topology: Topology, costs: _Costs, batches: int, lag: int, depth: int) -> list[Iterator[Step[Action]]]:
    """The first ``batches`` of a run that goes on, so that there are targets to emit until the end."""
    load = costs.load
    plan = RunPlan(batches + lag * topology.blocks + 1, lag, predicts_down=not load.down and topology.blocks > 1)

    def crossing(edge: Edge, source: int, destination: int) -> Endpoint:
        up = edge.stream is Stream.ACTIVATION
        size, room = (load.up[edge.lower - 1], depth) if up else (load.down[edge.lower - 1] if load.down else 0, lag)
        # One more is posted than the depth, for the message in the block's hands.
        return Endpoint(costs.channel(source, destination, size, room + 1, _SEND_BUFFERS), BUFFERED)

    edges = joints(topology, crossing)

    def seconds(action: Action) -> float:
        times, n = load.stages[action.block - 1], action.n
        if action.op is Op.FORWARD:
            base = times.forward
        elif action.op is Op.LEARN:
            base = times.backward + times.update
        else:
            base, n = times.target, max(0, n - plan.lead(action.block))
        return costs.of(action.block, n, base) + costs.overhead

    def program(blocks: range) -> Iterator[Action]:
        return takewhile(
            lambda action: action.op is not Op.SAVE, rank_program(blocks, plan, lambda n: n == batches - 1)
        )

    return [
        steps(program(blocks), blocks, edges, seconds, keeps=True)
        for blocks in map(topology.blocks_of, range(topology.ranks))
    ]


def _held_by_action(action: Action) -> float:
    return 1.0 if action.op is Op.FORWARD else -1.0 if action.op is Op.LEARN else 0.0


def _pipelined(
    schedule: str, ranks: int, stages: Sequence[range], costs: _Costs, batches: int, microbatches: int
) -> list[Iterator[Step[Task]]]:
    """``stages`` are the blocks of each stage. A channel has no room: only the receives that a rank posts."""
    owner = owners(schedule, ranks, len(stages))
    channels: dict[tuple[bool, int], Channel] = {}
    """By whether it goes up, and by the lower one of its stages."""
    for lower in range(len(stages) - 1):
        low, high = owner[lower], owner[lower + 1]
        if low != high:
            size = costs.load.up[stages[lower][-1] - 1] / microbatches
            channels[True, lower] = costs.channel(low, high, size)
            channels[False, lower] = costs.channel(high, low, size)

    def seconds(task: Task) -> float:
        found = costs.overhead
        for block in stages[task.stage]:
            times = costs.load.stages[block - 1]
            match task.move:
                case Move.FORWARD:
                    base = times.forward / microbatches
                case Move.UPDATE:
                    base = times.update
                case Move.BACKWARD:
                    base = times.backward / microbatches
                case Move.INPUT:
                    base = times.backward * (1 - times.weight_share) / microbatches
                case _:
                    base = times.backward * times.weight_share / microbatches
            found += costs.of(block, task.n, base)
        return found

    def parts(task: Task) -> tuple[Part, ...]:
        verb, up, below = _MESSAGES.get(task.move, (Verb.WORK, True, 0))
        channel = channels.get((up, task.stage - below))
        message: tuple[Part, ...] = () if verb is Verb.WORK or channel is None else ((verb, channel),)
        return (*message, (Verb.WORK, None)) if task.move in _COMPUTES else message

    def program(order: Sequence[Task]) -> Iterator[Step[Task]]:
        rows = [(task, parts(task)) for task in order]
        for n in range(batches):
            for task, row in rows:
                named = Task(task.stage, task.move, task.micro, n)
                yield Step(named, seconds(named) if task.move in _COMPUTES else 0.0, row)

    return [program(order) for order in tasks(schedule, ranks, len(stages), microbatches)]


def _held_by_task(stages: Sequence[range], microbatches: int) -> Callable[[Task], float]:
    def change(task: Task) -> float:
        share = len(stages[task.stage]) / microbatches
        if task.move is Move.FORWARD:
            return share
        return -share if task.move in (Move.BACKWARD, Move.WEIGHT) else 0.0

    return change
