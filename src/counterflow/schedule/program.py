"""The program of section 2 of the design: for every block, and for a rank that owns several, a generator of actions.

A block waits for nothing but the next message of a named channel, so the same actions give the same result on any
number of processes. As a timetable (3 blocks, lag 1; T = take target and emit the one below, F = forward, L = learn)::

    block 3   T0 T1 |       T2       |  F0 L0 T3 | F1 L1 ..      two targets ahead
    block 2      T0 |    T1 F0 L0    |  T2 F1 L1 | ..            one target ahead
    block 1         | T0 F0 L0 T1 F1 L1 T2 F2 L2 | ..            none below it
           prologue | fill           | steady: nobody waits
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from counterflow.message import Kind, Tag
from counterflow.schedule.plan import Plan
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
                return Tag(Kind.TARGET, self.n)
            case Op.FORWARD:
                return Tag(Kind.ACTIVATION, self.n)
            case Op.EVALUATE:
                return Tag(Kind.TEST, self.n, self.e)
            case Op.PREDICT:
                return Tag(Kind.PREDICTION, self.n, self.e)
            case Op.LEARN:
                return None

    @property
    def stream(self) -> Stream:
        return Stream.TARGET if self.op in (Op.TARGET, Op.PREDICT) else Stream.ACTIVATION


def _prologue(block: int, plan: Plan) -> Iterator[Action]:
    for n in range(min(plan.distance(block), plan.batches)):
        yield Action(Op.TARGET, block, n)


def _batch(block: int, n: int, plan: Plan) -> Iterator[Action]:
    ahead = n + plan.distance(block)
    if ahead < plan.batches and not plan.predicts_down:
        yield Action(Op.TARGET, block, ahead)
    yield Action(Op.FORWARD, block, n)
    yield Action(Op.LEARN, block, n)


def _exact_batch(blocks: range, n: int) -> Iterator[Action]:
    for block in reversed(blocks):
        yield Action(Op.TARGET, block, n)
    for block in blocks:
        yield Action(Op.FORWARD, block, n)
        yield Action(Op.LEARN, block, n)


def block_program(block: int, plan: Plan) -> Iterator[Action]:
    """The program of one block, to be run by a process of its own."""
    return rank_program(range(block, block + 1), plan)


def rank_program(blocks: range, plan: Plan) -> Iterator[Action]:
    """The programs of consecutive blocks, merged into one order in which none of them waits for another one of them.

    Ascending order within a batch works because the target that block k needs at batch n left block k+1 at batch
    n - lag. With ``plan.lag == 0`` targets come down first, and all blocks must be on one process.
    """
    for block in reversed(blocks):
        yield from _prologue(block, plan)
    for n in range(plan.batches):
        if plan.lag == 0 and not plan.predicts_down:
            yield from _exact_batch(blocks, n)
        else:
            for block in blocks:
                yield from _batch(block, n, plan)
        if plan.evaluates_after(n):
            for e in range(plan.test_batches):
                yield from (Action(Op.EVALUATE, block, n, e) for block in blocks)
            if plan.predicts_down:
                for e in range(plan.test_batches):
                    yield from (Action(Op.PREDICT, block, n, e) for block in reversed(blocks))
