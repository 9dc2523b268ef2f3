"""The channels of a rank's blocks: local ones inside the process, remote ones to its neighbours."""

from collections.abc import Callable

from counterflow.algorithms import RuleSet
from counterflow.algorithms.rule import MessageSpec
from counterflow.engine import inputs
from counterflow.engine.job import Job
from counterflow.engine.stage import StageChannels
from counterflow.message import MessageKind, Tag
from counterflow.topology import Edge, Stream
from counterflow.transport import Communicator, LocalChannel, MessageLayout, Receiver, Sender, TensorSpec


def message_layouts(column: RuleSet, job: Job, edge: Edge) -> Callable[[Tag], MessageLayout]:
    """The layout of every message of ``edge``, agreed on by both ends without a word: a function of its tag."""
    batch = job.config.train.batch_size
    layouts: dict[MessageSpec, MessageLayout] = {}
    packed = job.numerics.packed_shape

    def specs(tag: Tag) -> MessageSpec:
        match tag.kind:
            case MessageKind.ACTIVATION:
                return column.activation(edge.lower, batch)
            case MessageKind.TEST:
                return column.test_activation(edge.lower, job.batches.evaluation_size(tag.e))
            case MessageKind.PREDICTION:
                return column.prediction(edge.lower, job.batches.evaluation_size(tag.e))
            case MessageKind.GRADIENT:
                return column.target(edge.lower, tag.n, batch)
            case MessageKind.TARGET:
                target = column.target(edge.lower, tag.n, batch)
                if not job.plan.evaluates_after(tag.n):
                    return target
                labels = job.batches.labels_of(job.plan.evaluation(tag.n))
                return (*target, (tuple(labels.shape), labels.dtype))

    def layout(tag: Tag) -> MessageLayout:
        key = specs(tag)
        if key not in layouts:
            layouts[key] = MessageLayout(tuple(TensorSpec(packed(shape), dtype) for shape, dtype in key))
        return layouts[key]

    return layout


class ChannelFactory:
    """The ports of all blocks of one rank."""

    def __init__(self, job: Job, column: RuleSet, comm: Communicator) -> None:
        self._job = job
        self._column = column
        self._comm = comm
        self._local: dict[Edge, LocalChannel] = {}

    def ports(self, block: int) -> StageChannels:
        job = self._job
        top = job.topology.blocks
        return StageChannels(
            activation_in=self._receiver(Edge(Stream.ACTIVATION, block - 1))
            if block > 1
            else inputs.inputs(job.batches, job.plan, job.numerics),
            activation_out=self._sender(Edge(Stream.ACTIVATION, block)) if block < top else None,
            target_in=self._receiver(Edge(Stream.TARGET, block))
            if block < top
            else inputs.labels(job.batches, job.plan, top, job.device),
            target_out=self._sender(Edge(Stream.TARGET, block - 1)) if block > 1 else None,
        )

    def _is_local(self, edge: Edge) -> bool:
        return edge not in self._job.topology.remote_edges()

    def _sender(self, edge: Edge) -> Sender:
        if self._is_local(edge):
            return self._local.setdefault(edge, LocalChannel(edge))
        return self._comm.sender(edge, message_layouts(self._column, self._job, edge))

    def _receiver(self, edge: Edge) -> Receiver:
        if self._is_local(edge):
            return self._local.setdefault(edge, LocalChannel(edge))
        engine, plan = self._job.config.engine, self._job.plan
        depth = engine.depth if edge.stream is Stream.ACTIVATION else engine.target_depth or plan.lag
        layouts = message_layouts(self._column, self._job, edge)
        return self._comm.receiver(edge, layouts, depth, plan.messages(edge))
