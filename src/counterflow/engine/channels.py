"""The channels of a rank's blocks: local ones inside the process, remote ones to its neighbours, inputs and labels."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from counterflow.algorithms.rule import MessageSpec, RuleSet
from counterflow.data.batch_loader import BatchKey, Field
from counterflow.data.prefetch import prefetch
from counterflow.engine.job import Job
from counterflow.engine.replica_sync import ReplicaSync
from counterflow.message import MessageKind, Tag
from counterflow.schedule import RunPlan
from counterflow.topology import Edge, Stream
from counterflow.transport import Communicator, LocalChannel, MessageLayout, Payload, Receiver, Sender, TensorSpec

Item = tuple[Tag, Payload]
Layouts = Callable[[Tag], MessageLayout]


@dataclass(frozen=True)
class StageChannels:
    """The channels of one block; the top sends no activations, the bottom no targets."""

    activation_in: Receiver
    activation_out: Sender | None
    target_in: Receiver
    target_out: Sender | None
    specs: Callable[[Tag], MessageSpec]
    """Content of a message that the block sends."""
    sync_out: Mapping[int, Sender]
    """To the copies of the block in other replicas."""
    sync_in: Mapping[int, Receiver]


def message_specs(rules: RuleSet, job: Job, lower: int, tag: Tag) -> MessageSpec:
    """Content of message ``tag`` between the blocks ``lower`` and ``lower + 1``, in the replica of ``job``."""
    batch, batches = job.shard_size, job.batches
    match tag.kind:
        case MessageKind.ACTIVATION:
            return rules.activation(lower, batch // job.plan.parts)
        case MessageKind.TEST:
            return rules.test_activation(lower, batches.evaluation_size(tag.e))
        case MessageKind.PREDICTION:
            return rules.prediction(lower, batches.evaluation_size(tag.e))
        case MessageKind.GRADIENT | MessageKind.TARGET:
            target = rules.target(lower, tag.n, batch)
            if tag.kind is MessageKind.GRADIENT or not job.plan.evaluates_after(tag.n):
                return target
            return (*target, (batches.shape_of_labels(job.plan.evaluation(tag.n)), job.task.label_type))
        case MessageKind.SLICE | MessageKind.SUM:
            raise AssertionError("copies of a block have layouts of their own")


def message_layouts(rules: RuleSet, job: Job, edge: Edge) -> Callable[[Tag], MessageLayout]:
    """The layout of every message of ``edge`` by its tag. Both ends compute the same function."""
    layout = cache(partial(message_layout, job))
    return lambda tag: layout(tag.kind, message_specs(rules, job, edge.lower, tag))


def message_layout(job: Job, kind: MessageKind, specs: MessageSpec) -> MessageLayout:
    """The layout of a message of ``kind`` whose content is ``specs``."""
    return MessageLayout(tuple(TensorSpec(shape, dtype) for shape, dtype in job.runtime.packed(kind, specs)))


def sync_layouts(sync: ReplicaSync, edge: Edge) -> Callable[[Tag], MessageLayout]:
    """The same for an edge between copies of a block, one of which has ``sync``."""
    layouts = {
        (kind, bucket): MessageLayout((TensorSpec((sync.length(bucket, replica),)),))
        for kind, replica in ((MessageKind.SLICE, edge.peer), (MessageKind.SUM, edge.replica))
        for bucket in range(sync.buckets)
    }
    return lambda tag: layouts[tag.kind, tag.e]


@dataclass(frozen=True)
class InputChannel:
    """The receiving end of a stream that this process makes itself."""

    items: Generator[Item]
    device: torch.device

    def receive(self, tag: Tag) -> Payload:
        found, tensors = next(self.items)
        assert found == tag, f"{found} came where {tag} was expected"
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)

    def release(self) -> None:
        """Nothing to give back: the tensors belong to the block that took them."""

    def close(self) -> None:
        self.items.close()


def input_stream(job: Job) -> InputChannel:
    """The network's input of every training and test batch, each prepared while the one before trains.

    With the labels of the batch, where these enter at the bottom too.
    """
    batches, plan = job.batches, job.plan

    def keys(plan: RunPlan) -> Iterator[BatchKey]:
        for tag in plan.activations():
            if tag.kind is MessageKind.TEST:
                yield BatchKey(tag.e, evaluation=True)
            elif tag.e == 0:
                yield job.shard(tag.n)

    def stream(field: Field) -> Iterator[Tensor]:
        return batches.stream(field, keys(plan), keys(plan.undecided))

    def items() -> Generator[Item]:
        streams = [stream("inputs"), *([stream("labels")] if plan.predicts_down else [])]
        parts: Iterator[Payload] = iter(())
        for tag in plan.activations():
            if tag.kind is MessageKind.TEST:
                parts = iter([tuple(next(tensors) for tensors in streams)])
            elif tag.e == 0:
                parts = zip(*(next(tensors).chunk(plan.parts) for tensors in streams), strict=True)
            x, *labels = next(parts)
            yield tag, (*job.runtime.arrange((x,)), *labels)

    # Data that lies on a GPU is prepared there, in the order of its stream: a thread would only be in the way.
    return InputChannel(items() if batches.resident else prefetch(items()), job.device)


def label_stream(job: Job) -> InputChannel:
    """Labels for the top block: of every training batch, and of all batches of the evaluation after it."""
    batches, plan, top = job.batches, job.plan, job.topology.blocks

    def keys(plan: RunPlan) -> Iterator[BatchKey]:
        for tag in plan.targets(top):
            if tag.kind is not MessageKind.PREDICTION:
                yield job.shard(tag.n)
                yield from batches.plain(plan.evaluation(tag.n))

    def items() -> Generator[Item]:
        labels = batches.stream("labels", keys(plan), keys(plan.undecided))
        for tag in plan.targets(top):
            if tag.kind is MessageKind.PREDICTION:
                yield tag, ()
                continue
            train = next(labels)
            tests = [next(labels) for _ in batches.plain(plan.evaluation(tag.n))]
            yield tag, (train, torch.cat(tests)) if tests else (train,)

    return InputChannel(items(), job.device)


class ChannelFactory:
    """Makes the channels of all pieces of one rank."""

    def __init__(self, job: Job, rules: RuleSet, comm: Communicator) -> None:
        self._job = job
        self._rules = rules
        self._comm = comm
        local = set(job.topology.edges()) - set(job.topology.remote_edges())
        self._local = {edge: LocalChannel(edge) for edge in local}

    def channels(self, job: Job, block: int, sync: ReplicaSync | None) -> StageChannels:
        """Those of ``block`` in the replica of ``job``, which has ``sync`` if there are several."""
        replica, bottom, top = job.replica, block == 1, block == job.topology.blocks
        layouts = partial(message_layouts, self._rules, job)

        def specs(tag: Tag) -> MessageSpec:
            goes_up = tag.kind in (MessageKind.ACTIVATION, MessageKind.TEST)
            return message_specs(self._rules, job, block if goes_up else block - 1, tag)

        def sender(stream: Stream, lower: int) -> Sender:
            return self._sender(edge := Edge(stream, lower, replica), layouts(edge))

        def receiver(stream: Stream, lower: int) -> Receiver:
            edge = Edge(stream, lower, replica)
            depth = job.depth if stream is Stream.ACTIVATION else job.target_depth or job.plan.lag
            return self._receiver(edge, layouts(edge), depth, job.plan.messages(edge))

        sync_out, sync_in = {}, {}
        if sync is not None:
            for peer in (peer for peer in range(job.topology.replicas) if peer != replica):
                out, back = Edge(Stream.SYNC, block, replica, peer), Edge(Stream.SYNC, block, peer, replica)
                sync_out[peer] = self._sender(out, sync_layouts(sync, out))
                # All buckets of a meeting leave before any is taken, on both sides.
                messages = job.plan.meetings(sync.buckets)
                sync_in[peer] = self._receiver(back, sync_layouts(sync, back), sync.buckets, messages)
        return StageChannels(
            activation_in=input_stream(job) if bottom else receiver(Stream.ACTIVATION, block - 1),
            activation_out=None if top else sender(Stream.ACTIVATION, block),
            target_in=label_stream(job) if top else receiver(Stream.TARGET, block),
            target_out=None if bottom else sender(Stream.TARGET, block - 1),
            specs=specs,
            sync_out=sync_out,
            sync_in=sync_in,
        )

    def _sender(self, edge: Edge, layouts: Layouts) -> Sender:
        if edge in self._local:
            return self._local[edge]
        return self._comm.sender(edge, layouts)

    def _receiver(self, edge: Edge, layouts: Layouts, depth: int, messages: Iterator[Tag]) -> Receiver:
        if edge in self._local:
            return self._local[edge]
        return self._comm.receiver(edge, layouts, depth, messages)
