"""Pipelines with a backward lock, as the schedules of torch.distributed.pipelining run them: for every rank, what it
does with one update batch.

A task is (stage, move, micro-batch), stages and micro-batches counted from 0: ``2F0`` is the forward pass of
micro-batch 0 through stage 2, ``B`` its backward pass, or ``I`` and ``W`` that for the input and for the weights
apart, ``U`` the update. As timetables (3 stages, 4 micro-batches)::

    gpipe    stage 2         F0 F1 F2 F3 B0 B1 B2 B3 U
             stage 1      F0 F1 F2 F3       B0 B1 B2 B3 U
             stage 0   F0 F1 F2 F3             B0 B1 B2 B3 U

    1f1b     stage 2         F0 B0 F1 B1 F2 B2 F3 B3 U
             stage 1      F0 F1    B0 F2 B1 F3 B2    B3 U
             stage 0   F0 F1 F2       B0 F3 B1    B2    B3 U

    zbh1     stage 2         F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3 U
             stage 1      F0 F1    I0 F2 I1 W0 F3 I2 W1 I3 W2 W3 U
             stage 0   F0 F1 F2       I0 W0 F3 I1 W1 I2 W2 I3 W3 U

In between stand the tasks that carry messages: ``SEND_F`` and ``SEND_B`` hand over what goes up and what comes down,
``RECV_F`` and ``RECV_B`` post receives, ``WAIT_SEND_F`` and ``WAIT_SEND_B`` wait for a send, which is over only when
it has met its receive. A forward or backward pass itself waits for its message.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from counterflow.topology import Topology

PIPELINES = ("sequential", "gpipe", "1f1b", "interleaved1f1b", "zbh1", "zbv")


class Move(Enum):
    FORWARD = "F"
    BACKWARD = "B"
    INPUT = "I"
    """The backward pass down to the gradient of the input, which the stage below waits for."""
    WEIGHT = "W"
    """The rest of the backward pass."""
    UPDATE = "U"
    RECEIVE_UP = "RECV_F"
    SEND_UP = "SEND_F"
    SENT_UP = "WAIT_SEND_F"
    RECEIVE_DOWN = "RECV_B"
    SEND_DOWN = "SEND_B"
    SENT_DOWN = "WAIT_SEND_B"


@dataclass(frozen=True)
class Task:
    """``n`` is the update batch."""

    stage: int
    move: Move
    micro: int = 0
    n: int = 0

    def __str__(self) -> str:
        return f"{self.stage}{self.move.value}" + ("" if self.move is Move.UPDATE else f"{self.micro}")

    @property
    def completes(self) -> tuple[int, int] | None:
        """The stage and the update batch, if the task is the update."""
        return (self.stage, self.n) if self.move is Move.UPDATE else None


def blocks_of_stages(schedule: str, topology: Topology) -> list[range]:
    """The blocks of every stage, bottom to top: one each where a rank has several stages, else all of a rank's."""
    if schedule in ("interleaved1f1b", "zbv") and topology.ranks > 1:
        return [range(block, block + 1) for block in range(1, topology.blocks + 1)]
    return [topology.blocks_of(rank) for rank in range(topology.ranks)]


def owners(schedule: str, ranks: int, stages: int) -> list[int]:
    """The rank of every stage, bottom to top: around and around, and there and back again for ``zbv``."""
    around = [*range(ranks), *reversed(range(ranks))] if schedule == "zbv" else list(range(ranks))
    return [around[stage % len(around)] for stage in range(stages)]


def tasks(schedule: str, ranks: int, stages: int, microbatches: int) -> list[list[Task]]:
    """What every rank does with one update batch, for one of `PIPELINES`."""
    owner, top = owners(schedule, ranks, stages), stages - 1
    match schedule:
        case "sequential" | "gpipe":
            orders = [list(_gpipe(rank, microbatches)) for rank in range(ranks)]
        case "1f1b":
            orders = [list(_one_forward_one_backward(rank, ranks, microbatches)) for rank in range(ranks)]
        case "interleaved1f1b":
            each = stages // ranks
            orders = _with_messages(
                [list(_interleaved(rank, ranks, each, microbatches)) for rank in range(ranks)], owner
            )
        case "zbh1":
            orders = _with_messages([list(_zero_bubble(rank, ranks, microbatches)) for rank in range(ranks)], owner)
        case _:
            assert schedule == "zbv"
            orders = _with_messages([list(_zero_bubble_v(rank, ranks, microbatches)) for rank in range(ranks)], owner)
    return [
        [task for task in order if _exists(task, top)]
        + [Task(stage, Move.UPDATE) for stage in range(stages) if owner[stage] == rank]
        for rank, order in enumerate(orders)
    ]


def _exists(task: Task, top: int) -> bool:
    """Nothing comes from below the bottom or goes there, nor to and from above the top."""
    match task.move:
        case Move.RECEIVE_UP | Move.SEND_DOWN | Move.SENT_DOWN:
            return task.stage > 0
        case Move.SEND_UP | Move.SENT_UP | Move.RECEIVE_DOWN:
            return task.stage < top
        case _:
            return True


def _gpipe(stage: int, microbatches: int) -> Iterator[Task]:
    """All forward, then all backward; sends are waited for at the end of either."""
    micros = range(microbatches)
    for micro in micros:
        for move in (Move.RECEIVE_UP, Move.FORWARD, Move.SEND_UP):
            yield Task(stage, move, micro)
    yield from (Task(stage, Move.SENT_UP, micro) for micro in micros)
    for micro in micros:
        for move in (Move.RECEIVE_DOWN, Move.BACKWARD, Move.SEND_DOWN):
            yield Task(stage, move, micro)
    yield from (Task(stage, Move.SENT_DOWN, micro) for micro in micros)


def _one_forward_one_backward(stage: int, stages: int, microbatches: int) -> Iterator[Task]:
    """As many forward passes ahead as there are stages from here to the top; then one backward, one forward.

    In between, a send one way and the receive of the other way are posted together and both waited for.
    """
    ahead = min(microbatches, stages - stage)
    for micro in range(ahead):
        yield Task(stage, Move.RECEIVE_UP, micro)
        yield Task(stage, Move.FORWARD, micro)
        if micro > 0:
            yield Task(stage, Move.SENT_UP, micro - 1)
        if micro < ahead - 1:
            yield Task(stage, Move.SEND_UP, micro)
    for micro in range(ahead - 1, microbatches):
        back = micro - (ahead - 1)
        if back > 0:
            yield Task(stage, Move.SEND_DOWN, back - 1)
            yield Task(stage, Move.RECEIVE_UP, micro)
            yield Task(stage, Move.SENT_DOWN, back - 1)
            yield Task(stage, Move.FORWARD, micro)
        yield Task(stage, Move.SEND_UP, micro)
        yield Task(stage, Move.RECEIVE_DOWN, back)
        yield Task(stage, Move.SENT_UP, micro)
        yield Task(stage, Move.BACKWARD, back)
    for back in range(microbatches - ahead, microbatches):
        if back > microbatches - ahead:
            yield Task(stage, Move.RECEIVE_DOWN, back)
            yield Task(stage, Move.BACKWARD, back)
            yield Task(stage, Move.SENT_DOWN, back - 1)
        yield Task(stage, Move.SEND_DOWN, back)
    yield Task(stage, Move.SENT_DOWN, microbatches - 1)


def _interleaved(rank: int, ranks: int, each: int, microbatches: int) -> Iterator[Task]:
    """1F1B with ``each`` stages a rank, in rounds of as many micro-batches as there are ranks."""
    total = each * microbatches

    def forward(i: int) -> Task:
        turn, place = divmod(i, ranks)
        return Task(turn % each * ranks + rank, Move.FORWARD, turn // each * ranks + place)

    def backward(i: int) -> Task:
        turn, place = divmod(i, ranks)
        return Task((each - 1 - turn % each) * ranks + rank, Move.BACKWARD, turn // each * ranks + place)

    ahead = min((each - 1) * ranks + 2 * (ranks - 1 - rank), total)
    yield from (forward(i) for i in range(ahead))
    for i in range(ahead, total):
        yield forward(i)
        yield backward(i - ahead)
    yield from (backward(i) for i in range(total - ahead, total))


def _zero_bubble(stage: int, stages: int, microbatches: int) -> Iterator[Task]:
    """ZB-H1: 1F1B whose backward passes for the weights wait, ``stage`` of them, and fill what was a bubble."""
    ahead = min(stages - 1 - stage, microbatches)
    yield from (Task(stage, Move.FORWARD, micro) for micro in range(ahead))
    for back in range(microbatches):
        if back + ahead < microbatches:
            yield Task(stage, Move.FORWARD, back + ahead)
        yield Task(stage, Move.INPUT, back)
        if back >= stage:
            yield Task(stage, Move.WEIGHT, back - stage)
    yield from (Task(stage, Move.WEIGHT, micro) for micro in range(max(0, microbatches - stage), microbatches))


def _zero_bubble_v(rank: int, ranks: int, microbatches: int) -> Iterator[Task]:
    """ZB-V: every rank has one stage on the way up and one on the way back, and the top rank both middle ones."""
    low, high = rank, 2 * ranks - 1 - rank
    done = dict.fromkeys([(stage, move) for stage in (low, high) for move in Move], 0)

    def following(stage: int, *moves: Move) -> Iterator[Task]:
        for move in moves:
            yield Task(stage, move, done[stage, move])
            done[stage, move] += 1

    learn = (Move.INPUT, Move.WEIGHT)
    for _ in range(2 * (ranks - rank) - 1):
        yield from following(low, Move.FORWARD)
    for _ in range(rank):
        yield from following(high, Move.FORWARD)
        yield from following(low, Move.FORWARD)
    for _ in range(ranks - rank):
        yield from following(high, Move.FORWARD, *learn)
    while done[high, Move.FORWARD] < microbatches:
        if done[low, Move.FORWARD] < microbatches:
            yield from following(low, Move.FORWARD)
        yield from following(low, *learn)
        yield from following(high, Move.FORWARD, *learn)
    for _ in range(rank):
        yield from following(low, Move.INPUT)
        yield from following(high, Move.INPUT)
    for _ in range(ranks - rank):
        yield from following(low, *learn)
    for stage in (high, low):
        while done[stage, Move.WEIGHT] < microbatches:
            yield from following(stage, Move.WEIGHT)


def _with_messages(orders: Sequence[Sequence[Task]], owner: Sequence[int]) -> list[list[Task]]:
    """Add the messages: a send right after its pass, and the receive where the other rank then is.

    The ranks take turns, a task each, if what it needs is there. A send up is waited for after the backward pass of its
    micro-batch, which proves that it has arrived; sends down are waited for at the end.
    """
    found: list[list[Task]] = [[] for _ in orders]
    last: list[list[Task]] = [[] for _ in orders]
    passed: set[tuple[int, bool, int]] = set()
    to_do = [deque(order) for order in orders]

    def ready(task: Task) -> bool:
        up = task.move is Move.FORWARD
        source = task.stage - 1 if up else task.stage + 1
        return task.move is Move.WEIGHT or not 0 <= source < len(owner) or (source, up, task.micro) in passed

    def other(stage: int, rank: int) -> bool:
        return 0 <= stage < len(owner) and owner[stage] != rank

    def take(rank: int, task: Task) -> None:
        stage, micro, up = task.stage, task.micro, task.move is Move.FORWARD
        found[rank].append(task)
        if task.move is Move.WEIGHT:
            return
        passed.add((stage, up, micro))
        if not up and other(stage + 1, rank):
            found[rank].append(Task(stage, Move.SENT_UP, micro))
        sink = stage + 1 if up else stage - 1
        if other(sink, rank):
            found[rank].append(Task(stage, Move.SEND_UP if up else Move.SEND_DOWN, micro))
            found[owner[sink]].append(Task(sink, Move.RECEIVE_UP if up else Move.RECEIVE_DOWN, micro))
            if not up:
                last[rank].append(Task(stage, Move.SENT_DOWN, micro))

    while any(to_do):
        before = sum(map(len, to_do))
        for rank, rest in enumerate(to_do):
            if rest and ready(rest[0]):
                take(rank, rest.popleft())
        assert sum(map(len, to_do)) < before, "every order can be run to its end"
    return [[*order, *waits] for order, waits in zip(found, last, strict=True)]
