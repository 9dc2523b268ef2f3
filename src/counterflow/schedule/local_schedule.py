"""Program of local rules: the course of a run, and a generator of actions for a rank and the pieces that it owns.

A block waits for nothing but the next message of a named channel, so the same actions give the same result on any
number of processes. As a timetable (3 blocks, lag 1; T = take target and emit the one below, F = forward, L = learn)::

    block 3   T0 T1 |       T2       |  F0 L0 T3 | F1 L1 ..      two targets ahead
    block 2      T0 |    T1 F0 L0    |  T2 F1 L1 | ..            one target ahead
    block 1         | T0 F0 L0 T1 F1 L1 T2 F2 L2 | ..            none below it
           prologue | fill           | steady: no waits
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain
from operator import itemgetter

from counterflow.message import MessageKind, Tag
from counterflow.topology import Edge, Piece, Stream


def _never(n: int) -> bool:
    return False


@dataclass(frozen=True)
class RunPlan:
    """Course of a run of ``batches`` training batches, as a function of the batch index ``n``.

    ``lag`` is per hop; 0 is the locked, sequential algorithm (`engine.lag=exact`). After the last batch come
    ``validation_batches`` batches of held out training data and then ``test_batches`` of test data; after every
    ``evaluate_every`` batches before it (0: never) the former alone, or the latter if nothing is held out. Of
    ``views`` consecutive evaluation batches, the same samples in several views, an evaluation before the end has only
    the last.

    What comes down depends on the rule: targets while training, which a lag lets leave early; or, with
    ``predicts_down``, nothing while training, so that there is nothing to lag, and predictions of every test batch;
    or the gradients of all activations, from the top block ``gradients_from`` (0: none), which an activation has to
    reach first: block k takes that of batch n after batch n + ``lag`` (N - k) has gone up.

    A batch travels up in ``parts`` equal parts, one message each; its target comes down once, before the first part.

    The copies of a block in ``replicas`` pipelines meet after every ``sync_every`` batches, and after the last one:
    each sends to every other one the slice that this one sums up, and then the sum of its own. What they learn from it
    takes effect after ``sync_delay`` further batches, or after the last one if that comes first.

    Every block writes a checkpoint after every ``checkpoint_every`` batches, and after the last one (0: never). A run
    that goes on from one begins with batch ``start``.

    ``decided_by(n)`` is True if evaluations decided that the run ends with batch ``n`` or before; it waits until that
    is settled. A run that ends early is one of so many ``batches`` in all but its learning rates: no message of a
    later batch is ever sent, or awaited.
    """

    batches: int
    lag: int
    evaluate_every: int = 0
    test_batches: int = 0
    predicts_down: bool = False
    gradients_from: int = 0
    validation_batches: int = 0
    checkpoint_every: int = 0
    start: int = 0
    views: int = 1
    parts: int = 1
    replicas: int = 1
    sync_every: int = 1
    sync_delay: int = 0
    decided_by: Callable[[int], bool] = field(default=_never, compare=False, repr=False)

    def __post_init__(self) -> None:
        assert not (self.predicts_down and self.gradients_from)
        assert (self.parts == 1 and self.replicas == 1 and self.lag > 0) or not self.gradients_from
        assert 0 <= self.sync_delay < self.sync_every
        assert 0 <= self.start < self.batches

    def ends_with(self, n: int) -> bool:
        """True if batch ``n`` is the last one, or comes after it. May wait for an evaluation before batch ``n``."""
        return n >= self.batches - 1 or self.decided_by(n)

    def numbers(self, first: int) -> Iterator[int]:
        """The batches from ``first`` to the last one."""
        n = first
        while not self.ends_with(n - 1):
            yield n
            n += 1

    @property
    def undecided(self) -> "RunPlan":
        """The same plan as if no evaluation could end it early. It never waits."""
        return replace(self, decided_by=_never)

    def of_replica(self, replica: int) -> "RunPlan":
        """The plan as ``replica`` sees it: the first one evaluates for all."""
        return replace(self, evaluate_every=0, validation_batches=0, test_batches=0) if replica else self

    def lead(self, block: int) -> int:
        """``D_k``: number of batches by which a target leaves ``block`` for the block below before its activation."""
        return self.lag * (block - 1) if self.targets_down else 0

    def delay(self, block: int) -> int:
        """Number of batches that ``block`` sends up between a batch and its gradient."""
        return self.lag * (self.gradients_from - block) if self.gradients_from else 0

    @property
    def targets_down(self) -> bool:
        return not (self.predicts_down or self.gradients_from)

    def taken(self, block: int) -> int:
        """Number of training messages that ``block`` takes from above before batch ``start``.

        Those that the block above had sent beyond are the state of the channel between the two.
        """
        if self.targets_down:
            if self.start == 0:
                return 0
            ahead = self.start + self.lead(block)
            return next((n for n in range(self.start, ahead) if self.ends_with(n - 1)), ahead)
        return max(0, self.start - self.delay(block))

    @property
    def max_in_flight(self) -> int:
        """Messages from above, at most, that a block has not taken when the block above has finished the same batch."""
        return 0 if self.predicts_down else self.lag

    def first_steady(self, blocks: int) -> int:
        """The first batch for which a column of ``blocks`` is filled, if the run is long enough."""
        return self.start + min(blocks, (self.batches - self.start) // 2)

    def saves_after(self, n: int) -> bool:
        """True if a checkpoint follows batch ``n``."""
        if self.checkpoint_every == 0:
            return False
        # After an early end, a checkpoint would look like one to go on from.
        return n == self.batches - 1 or ((n + 1) % self.checkpoint_every == 0 and not self.ends_with(n))

    def evaluation(self, n: int) -> range:
        """The evaluation batches ``e`` that follow batch ``n``."""
        if self.ends_with(n):
            return range(self.validation_batches + self.test_batches)
        if self.evaluate_every > 0 and (n + 1) % self.evaluate_every == 0:
            return range(self.views - 1, self.validation_batches or self.test_batches, self.views)
        return range(0)

    def evaluates_after(self, n: int) -> bool:
        return len(self.evaluation(n)) > 0

    def split_ending(self, e: int) -> str | None:
        """The split whose last evaluation batch is ``e``, if any."""
        if e == self.validation_batches + self.test_batches - 1:
            return "test" if self.test_batches else "validation"
        return "validation" if e == self.validation_batches - 1 else None

    def activations(self) -> Iterator[Tag]:
        """Messages that enter at the bottom and that every activation edge carries, in order."""
        for n in self.numbers(self.start):
            yield from (Tag(MessageKind.ACTIVATION, n, part) for part in range(self.parts))
            yield from (Tag(MessageKind.TEST, n, e) for e in self.evaluation(n))

    def targets(self, block: int) -> Iterator[Tag]:
        """Messages that ``block`` takes from above, in order; those of the top block are labels."""
        for n in self.numbers(self.taken(block)):
            if self.targets_down:
                yield Tag(MessageKind.TARGET, n)
            elif self.gradients_from:
                yield Tag(MessageKind.GRADIENT, n)
            else:
                yield from (Tag(MessageKind.PREDICTION, n, e) for e in self.evaluation(n))

    def meets_after(self, n: int) -> bool:
        """True if the copies of a block meet after batch ``n``."""
        return self.replicas > 1 and ((n + 1) % self.sync_every == 0 or self.ends_with(n))

    def pending_meeting(self, n: int) -> int | None:
        """The batch before ``n`` after which copies met, if that takes effect after batch ``n`` or later."""
        met = n // self.sync_every * self.sync_every - 1
        return met if self.replicas > 1 and met >= 0 and n <= met + self.sync_delay else None

    def reduces_after(self, met: int) -> int:
        """The batch after which the slices of the meeting after batch ``met`` are summed up: half of the delay for
        them, the rest for the sums. The run may end before."""
        return met + (self.sync_delay + 1) // 2

    def meetings(self, buckets: int = 1) -> Iterator[Tag]:
        """Messages between two copies of a block whose slices and sums travel in ``buckets``, in order."""
        pending = self.pending_meeting(self.start)
        after = (n for n in self.numbers(self.start) if self.meets_after(n))
        for n in after if pending is None else chain([pending], after):
            for kind in (MessageKind.SLICE, MessageKind.SUM):
                yield from (Tag(kind, n, bucket) for bucket in range(buckets))

    def messages(self, edge: Edge) -> Iterator[Tag]:
        """Messages that ``edge`` carries, in order."""
        if edge.stream is Stream.SYNC:
            return self.meetings()
        plan = self.of_replica(edge.replica)
        return plan.activations() if edge.stream is Stream.ACTIVATION else plan.targets(edge.destination.block)


class Op(Enum):
    TARGET = "T"
    """Take ``b_k(n)`` from above, keep it until batch n is learnt, and send ``b_{k-1}(n)`` down."""
    FORWARD = "F"
    """Take (a part of) ``a_{k-1}(n)`` from below and send that of ``a_k(n)`` up."""
    LEARN = "L"
    """Learn from (a part of) the batch, and update ``theta_k`` and ``phi_k`` after the last one; no message."""
    EVALUATE = "E"
    """Take a test batch from below and send its activation up; no update."""
    PREDICT = "P"
    """Take the predictions of a test batch from above and send them down (``plan.predicts_down`` only)."""
    BACKWARD = "B"
    """Take a gradient from above, send its successor down, and update (``plan.gradients_from`` only)."""
    SCATTER = "X"
    """Send to every other copy of the block the slice of gradients, or of parameters, that it sums up."""
    REDUCE = "Y"
    """Take the slices of all other copies, sum them up in the order of replicas, and send the sum to each."""
    GATHER = "G"
    """Take the sums of all other copies, and update with them."""
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
    """Evaluation batch, or part of a training batch."""
    parts: int = 1
    """Parts of that training batch."""
    replica: int = 0

    def __str__(self) -> str:
        of = f"{self.replica}:" if self.replica else ""
        return f"{of}{self.block}{self.op.value}{self.n}" + (f".{self.part}" if self.part >= 0 else "")

    @property
    def part(self) -> int:
        """Number of the evaluation batch, or of the part of a training batch; -1 for a whole one."""
        return self.e if self.op in (Op.EVALUATE, Op.PREDICT) or self.parts > 1 else -1

    @property
    def completes(self) -> tuple[int, int] | None:
        """The block and the batch, if the action ends with its update."""
        learns = self.op in (Op.LEARN, Op.BACKWARD)
        return (self.block, self.n) if learns and self.e == self.parts - 1 else None


def _ahead(block: int, plan: RunPlan) -> range:
    """Batches whose targets ``block`` sends down before its first batch."""
    if plan.start == 0:
        return range(min(plan.lead(block), plan.batches))
    return range(plan.taken(block - 1), plan.taken(block)) if block > 1 else range(0)


def _prologue(pieces: Sequence[Piece], plan: RunPlan) -> Iterator[Action]:
    """Targets go down batch by batch: were they to go piece by piece, two processes with pieces of the same replicas
    could each fill the channel that the other empties last."""
    early = [(n, piece) for piece in reversed(pieces) for n in _ahead(piece.block, plan)]
    for n, (block, replica) in sorted(early, key=itemgetter(0)):
        yield Action(Op.RESEND if plan.start else Op.TARGET, block, n, replica=replica)
    met = plan.pending_meeting(plan.start)
    if met is not None:
        yield from _each(Op.SCATTER, pieces, met)
        if plan.reduces_after(met) < plan.start:
            yield from _each(Op.REDUCE, pieces, met)


def rank_program(
    pieces: Sequence[Piece], plan: RunPlan, halts_after: Callable[[int], bool] | None = None
) -> Iterator[Action]:
    """The programs of ``pieces``, by block and replica, merged into one order in which none waits for another of them.

    The blocks of a replica among them are consecutive. Ascending order within a batch works because the target that
    block k needs at batch n left block k+1 at batch n - lag. With ``plan.lag == 0`` targets come down first, and all
    blocks must be on one process. Copies of a block meet once all pieces have learnt.

    ``halts_after`` is asked after every batch but the last; the program ends there, with a checkpoint, if it says so.
    """
    yield from _prologue(pieces, plan)
    evaluated = [piece for piece in pieces if piece.replica == 0]
    for n in plan.numbers(plan.start):
        yield from _turn(pieces, n, plan)
        last = plan.ends_with(n)
        if last and plan.gradients_from:
            # The gradients that come after the last batch has gone up.
            for late in range(plan.batches, plan.batches + plan.delay(pieces[0].block)):
                yield from _backward(pieces, late, plan)
        yield from _meeting(pieces, n, plan)
        for e in plan.evaluation(n):
            yield from (Action(Op.EVALUATE, block, n, e) for block, _ in evaluated)
        for e in plan.evaluation(n) if plan.predicts_down else ():
            yield from (Action(Op.PREDICT, block, n, e) for block, _ in reversed(evaluated))
        halts = not last and halts_after is not None and halts_after(n)
        if halts or plan.saves_after(n):
            yield from _each(Op.SAVE, pieces, n)
        if halts:
            return


def _each(op: Op, pieces: Sequence[Piece], n: int) -> Iterator[Action]:
    return (Action(op, block, n, replica=replica) for block, replica in pieces)


def _turn(pieces: Sequence[Piece], n: int, plan: RunPlan) -> Iterator[Action]:
    """Training on batch ``n``; the targets of an exact run come down first."""
    if exact := plan.lag == 0 and plan.targets_down:
        yield from _each(Op.TARGET, pieces[::-1], n)
    for part in range(plan.parts):
        for block, replica in pieces:
            ahead = n + plan.lead(block)
            if part == 0 and plan.targets_down and not exact and not plan.ends_with(ahead - 1):
                yield Action(Op.TARGET, block, ahead, replica=replica)
            yield Action(Op.FORWARD, block, n, part, plan.parts, replica)
            if not plan.gradients_from:
                yield Action(Op.LEARN, block, n, part, plan.parts, replica)
    if plan.gradients_from:
        yield from _backward(pieces, n, plan)


def _meeting(pieces: Sequence[Piece], n: int, plan: RunPlan) -> Iterator[Action]:
    """Actions of the copies of each block together after batch ``n``."""
    met, last = plan.pending_meeting(n), plan.ends_with(n)
    if met is not None and (n == plan.reduces_after(met) or (last and n < plan.reduces_after(met))):
        yield from _each(Op.REDUCE, pieces, met)
    if met is not None and (n == met + plan.sync_delay or last):
        yield from _each(Op.GATHER, pieces, met)
    if plan.meets_after(n):
        yield from _each(Op.SCATTER, pieces, n)
        if last or plan.sync_delay == 0:
            yield from _each(Op.REDUCE, pieces, n)
            yield from _each(Op.GATHER, pieces, n)


def _backward(pieces: Sequence[Piece], n: int, plan: RunPlan) -> Iterator[Action]:
    """Backprop with a pipeline "added directly": no block waits for a gradient, so each one comes back late.

    Block k takes the gradient of batch n after it has sent batch n + lag (N - k) up: so long is the way to the top and
    back, with half a batch time to spare per hop under lag 2, and none under lag 1. As a timetable (3 blocks, lag 2,
    B = backward and update)::

        block 3 |       | F0 B0 | F1 B1 | F2 B2 | F3 B3 ..
        block 2 |    F0 | F1    | F2 B0 | F3 B1 | ..            two batches in flight
        block 1 | F0 F1 | F2    | F3    | F4 B0 | ..            four
    """
    for block, _ in pieces:
        back = n - plan.delay(block)
        if 0 <= back < plan.batches:
            yield Action(Op.BACKWARD, block, back)
