"""Program of local rules: a generator of actions for every block, and for a rank that owns several.

A block waits for nothing but the next message of a named channel, so the same actions give the same result on any
number of processes. As a timetable (3 blocks, lag 1; T = take target and emit the one below, F = forward, L = learn)::

    block 3   T0 T1 |       T2       |  F0 L0 T3 | F1 L1 ..      two targets ahead
    block 2      T0 |    T1 F0 L0    |  T2 F1 L1 | ..            one target ahead
    block 1         | T0 F0 L0 T1 F1 L1 T2 F2 L2 | ..            none below it
           prologue | fill           | steady: no waits
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from counterflow.message import MessageKind, Tag
from counterflow.schedule.run_plan import RunPlan
from counterflow.topology import Stream


class Op(Enum):
    TARGET = "T"
    """Take ``b_k(n)`` from above, keep it until batch n is learnt, and send ``b_{k-1}(n)`` down."""
    FORWARD = "F"
    """Take ``a_{k-1}(n)`` from below and send ``a_k(n)`` up."""
    LEARN = "L"
    """Update ``theta_k`` and ``phi_k``; no message."""
    EVALUATE = "E"
    """Take a test batch from below and send its activation up; no update."""
    PREDICT = "P"
    """Take the predictions of a test batch from above and send them down (``plan.predicts_down`` only)."""
    BACKWARD = "B"
    """Take a gradient from above, send its successor down, and update (``plan.gradients_from`` only)."""
    SAVE = "S"
    """Write a checkpoint of the block and of what it has sent down beyond the batch; no message."""
    RESEND = "R"
    """Send down again the messages that were in flight to the block below at the time of the checkpoint."""


@dataclass(frozen=True)
class Action:
    op: Op
    block: int
    n: int
    e: int = 0

    def __str__(self) -> str:
        return f"{self.block}{self.op.value}{self.n}" + (f".{self.e}" if self.op in (Op.EVALUATE, Op.PREDICT) else "")

    @property
    def tag(self) -> Tag | None:
        """The message that the action takes, and whose successor it sends on; None if it needs no channel."""
        match self.op:
            case Op.TARGET:
                return Tag(MessageKind.TARGET, self.n)
            case Op.FORWARD:
                return Tag(MessageKind.ACTIVATION, self.n)
            case Op.EVALUATE:
                return Tag(MessageKind.TEST, self.n, self.e)
            case Op.PREDICT:
                return Tag(MessageKind.PREDICTION, self.n, self.e)
            case Op.BACKWARD:
                return Tag(MessageKind.GRADIENT, self.n)
            case Op.LEARN | Op.SAVE | Op.RESEND:
                return None

    @property
    def completes(self) -> tuple[int, int] | None:
        """The block and the batch, if the action ends with its update."""
        return (self.block, self.n) if self.op in (Op.LEARN, Op.BACKWARD) else None

    @property
    def stream(self) -> Stream:
        return Stream.ACTIVATION if self.op in (Op.FORWARD, Op.EVALUATE) else Stream.TARGET


def _prologue(block: int, plan: RunPlan) -> Iterator[Action]:
    if plan.start == 0:
        for n in range(min(plan.lead(block), plan.batches)):
            yield Action(Op.TARGET, block, n)
    elif block > 1:
        for n in range(plan.taken(block - 1), plan.taken(block)):
            yield Action(Op.RESEND, block, n)


def _batch(block: int, n: int, plan: RunPlan) -> Iterator[Action]:
    ahead = n + plan.lead(block)
    if ahead < plan.batches and plan.targets_down:
        yield Action(Op.TARGET, block, ahead)
    yield Action(Op.FORWARD, block, n)
    yield Action(Op.LEARN, block, n)


def _exact_batch(blocks: range, n: int) -> Iterator[Action]:
    for block in reversed(blocks):
        yield Action(Op.TARGET, block, n)
    for block in blocks:
        yield Action(Op.FORWARD, block, n)
        yield Action(Op.LEARN, block, n)


def block_program(block: int, plan: RunPlan) -> Iterator[Action]:
    """The program of one block, to be run by a process of its own."""
    return rank_program(range(block, block + 1), plan)


def _never(n: int) -> bool:
    return False


def rank_program(blocks: range, plan: RunPlan, halts_after: Callable[[int], bool] = _never) -> Iterator[Action]:
    """The programs of consecutive blocks, merged into one order in which none of them waits for another one of them.

    Ascending order within a batch works because the target that block k needs at batch n left block k+1 at batch
    n - lag. With ``plan.lag == 0`` targets come down first, and all blocks must be on one process.

    ``halts_after`` is asked after every batch but the last; the program ends there, with a checkpoint, if it says so.
    """
    for block in reversed(blocks):
        yield from _prologue(block, plan)
    last = plan.batches - 1
    for n in range(plan.start, plan.batches):
        yield from _turn(blocks, n, plan)
        if n == last and plan.gradients_from:
            yield from _drain(blocks, plan)
        yield from _evaluation(blocks, n, plan)
        halts = n < last and halts_after(n)
        if halts or plan.saves_after(n):
            yield from (Action(Op.SAVE, block, n) for block in blocks)
        if halts:
            return


def _turn(blocks: range, n: int, plan: RunPlan) -> Iterator[Action]:
    if plan.gradients_from:
        yield from _naive_batch(blocks, n, plan)
    elif plan.lag == 0 and plan.targets_down:
        yield from _exact_batch(blocks, n)
    else:
        for block in blocks:
            yield from _batch(block, n, plan)


def _evaluation(blocks: range, n: int, plan: RunPlan) -> Iterator[Action]:
    for e in plan.evaluation(n):
        yield from (Action(Op.EVALUATE, block, n, e) for block in blocks)
    if plan.predicts_down:
        for e in plan.evaluation(n):
            yield from (Action(Op.PREDICT, block, n, e) for block in reversed(blocks))


def _naive_batch(blocks: range, n: int, plan: RunPlan) -> Iterator[Action]:
    """Backprop with a pipeline "added directly": no block waits for a gradient, so each one comes back late.

    Block k takes the gradient of batch n after it has sent batch n + 2 (N - k) up: so long is the way to the top and
    back. As a timetable (3 blocks, B = backward and update)::

        block 3 |       | F0 B0 | F1 B1 | F2 B2 | F3 B3 ..
        block 2 |    F0 | F1    | F2 B0 | F3 B1 | ..            two batches in flight
        block 1 | F0 F1 | F2    | F3    | F4 B0 | ..            four
    """
    yield from (Action(Op.FORWARD, block, n) for block in blocks)
    yield from _backward(blocks, n, plan)


def _drain(blocks: range, plan: RunPlan) -> Iterator[Action]:
    """The gradients that come after the last batch has gone up."""
    for n in range(plan.batches, plan.batches + 2 * (plan.gradients_from - blocks[0])):
        yield from _backward(blocks, n, plan)


def _backward(blocks: range, n: int, plan: RunPlan) -> Iterator[Action]:
    for block in blocks:
        back = n - 2 * (plan.gradients_from - block)
        if 0 <= back < plan.batches:
            yield Action(Op.BACKWARD, block, back)
