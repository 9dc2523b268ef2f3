"""Pipeline schedules with a backward lock, as data: the actions of every rank for one update batch.

They are those that torch.distributed.pipelining runs. An action is (stage, operation, micro-batch), stages and
micro-batches counted from 0: ``2F0`` is the forward pass of micro-batch 0 through stage 2. ``B`` is its backward pass.
``I`` and ``W`` are the backward pass for the input and for the weights apart, and ``U`` is the update. As timetables (3
stages, 4 micro-batches)::

    gpipe    stage 2         F0 F1 F2 F3 B0 B1 B2 B3 U
             stage 1      F0 F1 F2 F3       B0 B1 B2 B3 U
             stage 0   F0 F1 F2 F3             B0 B1 B2 B3 U

    1f1b     stage 2         F0 B0 F1 B1 F2 B2 F3 B3 U
             stage 1      F0 F1    B0 F2 B1 F3 B2    B3 U
             stage 0   F0 F1 F2       B0 F3 B1    B2    B3 U

    zbh1     stage 2         F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3 U
             stage 1      F0 F1    I0 F2 I1 W0 F3 I2 W1 I3 W2 W3 U
             stage 0   F0 F1 F2       I0 W0 F3 I1 W1 I2 W2 I3 W3 U

Further actions carry messages between them. ``SEND_F`` and ``SEND_B`` hand over an activation and a gradient.
``RECV_F`` and ``RECV_B`` post a receive. ``WAIT_SEND_F`` and ``WAIT_SEND_B`` wait for a send, which is over only when
it has met its receive. A forward or backward pass itself waits for its message.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from counterflow.topology import Topology

PIPELINES = ("sequential", "gpipe", "1f1b", "interleaved1f1b", "zbh1", "zbv")


class PipelineOp(Enum):
    FORWARD = "F"
    BACKWARD = "B"
    BACKWARD_INPUT = "I"
    """Backward pass down to the gradient of the input, which the stage below waits for."""
    BACKWARD_WEIGHT = "W"
    """Rest of the backward pass."""
    UPDATE = "U"
    RECV_F = "RECV_F"
    SEND_F = "SEND_F"
    WAIT_SEND_F = "WAIT_SEND_F"
    RECV_B = "RECV_B"
    SEND_B = "SEND_B"
    WAIT_SEND_B = "WAIT_SEND_B"


_F, _B, _I, _W = PipelineOp.FORWARD, PipelineOp.BACKWARD, PipelineOp.BACKWARD_INPUT, PipelineOp.BACKWARD_WEIGHT
_FROM_AND_TO_BELOW = (PipelineOp.RECV_F, PipelineOp.SEND_B, PipelineOp.WAIT_SEND_B)
_FROM_AND_TO_ABOVE = (PipelineOp.RECV_B, PipelineOp.SEND_F, PipelineOp.WAIT_SEND_F)


@dataclass(frozen=True)
class PipelineAction:
    """Operation of a stage on a micro-batch of update batch ``n``."""

    stage: int
    op: PipelineOp
    micro: int = 0
    n: int = 0

    def __str__(self) -> str:
        return f"{self.stage}{self.op.value}" + ("" if self.op is PipelineOp.UPDATE else f"{self.micro}")

    @property
    def completes(self) -> tuple[int, int] | None:
        """Stage and update batch, if the action is the update."""
        return (self.stage, self.n) if self.op is PipelineOp.UPDATE else None


def microbatch_error(
    schedule: str, ranks: int, blocks: int, microbatches: int, batch_size: int | None = None
) -> str | None:
    """Reason why a run under ``schedule`` refuses this number of micro-batches, or None if it allows it.

    Args:
        schedule: One of `PIPELINES`.
        ranks: Processes; one process runs the plain loop, which has no micro-batches.
        blocks: Blocks of the network.
        microbatches: Micro-batches of an update batch.
        batch_size: Samples of an update batch; None for any.
    """
    if ranks == 1:
        return None
    needs = (
        (
            batch_size is not None and batch_size % microbatches,
            f"train.microbatches={microbatches}: must divide train.batch_size={batch_size}",
        ),
        (
            schedule in ("1f1b", "zbh1") and microbatches < ranks,
            f"train.microbatches={microbatches}: schedule={schedule} needs at least one for each of ranks={ranks}",
        ),
        (
            schedule == "interleaved1f1b" and (blocks % ranks or blocks == ranks or microbatches % ranks),
            f"schedule=interleaved1f1b: blocks={blocks} must be a multiple of ranks={ranks}, and more; "
            f"train.microbatches={microbatches} must be a multiple of ranks",
        ),
        (
            schedule == "zbv" and (blocks != 2 * ranks or microbatches < 2 * ranks),
            f"schedule=zbv: blocks={blocks} must be {2 * ranks}, two for each rank; "
            f"train.microbatches={microbatches} must be at least {2 * ranks}",
        ),
    )
    return next((reason for refused, reason in needs if refused), None)


def check_microbatches(
    schedule: str, ranks: int, blocks: int, microbatches: int, batch_size: int | None = None
) -> None:
    """Raise ``ValueError`` with the `microbatch_error` of the same arguments, if there is one."""
    if error := microbatch_error(schedule, ranks, blocks, microbatches, batch_size):
        raise ValueError(error)


def microbatch_counts(schedule: str, ranks: int, blocks: int, batch_size: int) -> list[int]:
    """Numbers of micro-batches that a run under ``schedule`` allows, ascending."""
    return [m for m in range(1, batch_size + 1) if not microbatch_error(schedule, ranks, blocks, m, batch_size)]


def blocks_of_stages(schedule: str, topology: Topology) -> list[range]:
    """The blocks of every stage, bottom to top: one each where a rank has several stages, else all of a rank's."""
    if schedule in ("interleaved1f1b", "zbv") and topology.ranks > 1:
        return [range(block, block + 1) for block in range(1, topology.blocks + 1)]
    return [topology.blocks_of(rank) for rank in range(topology.ranks)]


def owners(schedule: str, ranks: int, stages: int) -> list[int]:
    """The rank of every stage, bottom to top: around and around, and there and back again for ``zbv``."""
    around = [*range(ranks), *reversed(range(ranks))] if schedule == "zbv" else list(range(ranks))
    return [around[stage % len(around)] for stage in range(stages)]


def block_owners(schedule: str, topology: Topology) -> list[int]:
    """The rank of every block, bottom to top; of several replicas, in the first one."""
    if topology.replicas > 1:
        return [topology.rank_of(block) for block in range(1, topology.blocks + 1)]
    stages = blocks_of_stages(schedule, topology)
    return [
        rank for stage, rank in zip(stages, owners(schedule, topology.ranks, len(stages)), strict=True) for _ in stage
    ]


def owned_blocks(schedule: str, topology: Topology, rank: int) -> list[int]:
    """The blocks of ``rank``, bottom to top, whichever replicas they are of."""
    if topology.replicas > 1:
        return sorted({block for block, _ in topology.pieces_of(rank)})
    return [block for block, owner in enumerate(block_owners(schedule, topology), 1) if owner == rank]


def pipeline_actions(schedule: str, ranks: int, stages: int, microbatches: int) -> list[list[PipelineAction]]:
    """Actions of every rank for one update batch, for one of `PIPELINES`."""
    owner = owners(schedule, ranks, stages)
    orders = [
        [action for action in _ORDERS[schedule](rank, ranks, stages, microbatches) if 0 <= action.micro < microbatches]
        for rank in range(ranks)
    ]
    if schedule in ("interleaved1f1b", "zbh1", "zbv"):
        orders = _with_messages(orders, owner)
    return [
        [
            action
            for action in order
            if not (action.stage == 0 and action.op in _FROM_AND_TO_BELOW)
            and not (action.stage == stages - 1 and action.op in _FROM_AND_TO_ABOVE)
        ]
        + [PipelineAction(stage, PipelineOp.UPDATE) for stage in range(stages) if owner[stage] == rank]
        for rank, order in enumerate(orders)
    ]


def _gpipe(rank: int, ranks: int, stages: int, microbatches: int) -> Iterator[PipelineAction]:
    """All forward, then all backward; sends are waited for at the end of either."""
    for passes, wait in (
        ((PipelineOp.RECV_F, _F, PipelineOp.SEND_F), PipelineOp.WAIT_SEND_F),
        ((PipelineOp.RECV_B, _B, PipelineOp.SEND_B), PipelineOp.WAIT_SEND_B),
    ):
        yield from (PipelineAction(rank, op, micro) for micro in range(microbatches) for op in passes)
        yield from (PipelineAction(rank, wait, micro) for micro in range(microbatches))


def _one_forward_one_backward(rank: int, ranks: int, stages: int, microbatches: int) -> Iterator[PipelineAction]:
    """As many forward passes ahead as there are stages from here to the top; then one backward, one forward.

    In the steady state, a send one way and the receive of the other way are posted together and both waited for.
    Micro-batches below 0 do not exist.
    """
    recv_f, send_f, wait_f = PipelineOp.RECV_F, PipelineOp.SEND_F, PipelineOp.WAIT_SEND_F
    recv_b, send_b, wait_b = PipelineOp.RECV_B, PipelineOp.SEND_B, PipelineOp.WAIT_SEND_B
    ahead = min(microbatches, ranks - rank) - 1
    order: list[tuple[PipelineOp, int]] = []
    for i in range(ahead):
        order += [(recv_f, i), (_F, i), (wait_f, i - 1), (send_f, i)]
    for i in range(ahead, microbatches):
        back = i - ahead
        order += [(send_b, back - 1), (recv_f, i), (wait_b, back - 1), (_F, i)]
        order += [(wait_f, i - 1)] if back == 0 else []
        order += [(send_f, i), (recv_b, back), (wait_f, i), (_B, back)]
    for back in range(microbatches - ahead, microbatches):
        order += [(send_b, back - 1), (recv_b, back), (_B, back), (wait_b, back - 1)]
    order += [(send_b, microbatches - 1), (wait_b, microbatches - 1)]
    return (PipelineAction(rank, op, micro) for op, micro in order)


def _interleaved(rank: int, ranks: int, stages: int, microbatches: int) -> Iterator[PipelineAction]:
    """1F1B with several stages a rank, in rounds of as many micro-batches as there are ranks."""
    each = stages // ranks
    total = each * microbatches
    ahead = min((each - 1) * ranks + 2 * (ranks - 1 - rank), total)

    def action(op: PipelineOp, i: int) -> PipelineAction:
        turn, place = divmod(i, ranks)
        chunk = turn % each if op is _F else each - 1 - turn % each
        return PipelineAction(chunk * ranks + rank, op, turn // each * ranks + place)

    return (action(op, i) for now in range(total + ahead) for op, i in ((_F, now), (_B, now - ahead)) if 0 <= i < total)


def _zero_bubble(rank: int, ranks: int, stages: int, microbatches: int) -> Iterator[PipelineAction]:
    """ZB-H1: 1F1B whose backward passes for the weights are ``rank`` late, and fill what was a bubble."""
    ahead = min(ranks - 1 - rank, microbatches)
    return (
        PipelineAction(rank, op, micro)
        for now in range(microbatches + ahead + rank)
        for op, micro in ((_F, now), (_I, now - ahead), (_W, now - ahead - rank))
    )


def _zero_bubble_v(rank: int, ranks: int, stages: int, microbatches: int) -> Iterator[PipelineAction]:
    """ZB-V: every rank has one stage on the way up and one on the way back, and the top rank both middle ones."""
    low, high = rank, 2 * ranks - 1 - rank
    order = [
        *[(low, _F)] * (2 * (ranks - rank) - 1),
        *[(high, _F), (low, _F)] * rank,
        *[(high, _F), (high, _I), (high, _W)] * (ranks - rank),
        *[(low, _F), (low, _I), (low, _W), (high, _F), (high, _I), (high, _W)] * (microbatches - ranks),
        *[(low, _I), (high, _I)] * rank,
        *[(low, _I), (low, _W)] * (ranks - rank),
        *[(high, _W)] * rank,
        *[(low, _W)] * rank,
    ]
    done = Counter[tuple[int, PipelineOp]]()
    for key in order:
        yield PipelineAction(*key, done[key])
        done[key] += 1


_ORDERS: dict[str, Callable[[int, int, int, int], Iterator[PipelineAction]]] = {
    "sequential": _gpipe,
    "gpipe": _gpipe,
    "1f1b": _one_forward_one_backward,
    "interleaved1f1b": _interleaved,
    "zbh1": _zero_bubble,
    "zbv": _zero_bubble_v,
}
"""Order of a rank from rank, ranks, stages and micro-batches; micro-batches that do not exist are left out later."""


def _with_messages(orders: Sequence[Sequence[PipelineAction]], owner: Sequence[int]) -> list[list[PipelineAction]]:
    """Add the messages: a send right after its pass, and the receive where the other rank then is.

    The ranks take turns, an action each, if what it needs is there. A send up is waited for after the backward pass of
    its micro-batch, which proves that it has arrived; sends down are waited for at the end.
    """
    result: list[list[PipelineAction]] = [[] for _ in orders]
    waits: list[list[PipelineAction]] = [[] for _ in orders]
    queues = [deque(order) for order in orders]
    done: set[tuple[int, bool, int]] = set()
    """Passes by stage, direction (True is forward) and micro-batch."""
    owner_of = dict(enumerate(owner))

    def advance(rank: int) -> bool:
        if not queues[rank]:
            return False
        action = queues[rank][0]
        stage, micro, up = action.stage, action.micro, action.op is _F
        source, sink = (stage - 1, stage + 1) if up else (stage + 1, stage - 1)
        if action.op is not _W:
            if source in owner_of and (source, up, micro) not in done:
                return False
            done.add((stage, up, micro))
        result[rank].append(queues[rank].popleft())
        if action.op is _W:
            return True
        if not up and owner_of.get(source, rank) != rank:
            result[rank].append(PipelineAction(stage, PipelineOp.WAIT_SEND_F, micro))
        peer = owner_of.get(sink, rank)
        if peer != rank:
            result[rank].append(PipelineAction(stage, PipelineOp.SEND_F if up else PipelineOp.SEND_B, micro))
            result[peer].append(PipelineAction(sink, PipelineOp.RECV_F if up else PipelineOp.RECV_B, micro))
            waits[rank] += [] if up else [PipelineAction(stage, PipelineOp.WAIT_SEND_B, micro)]
        return True

    while any(queues):
        progress = [advance(rank) for rank in range(len(queues))]
        assert any(progress), "every order can be run to its end"
    return [[*order, *rest] for order, rest in zip(result, waits, strict=True)]
