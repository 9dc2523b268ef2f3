"""The channels of a rank's blocks: local ones inside the process, remote ones to its neighbours, inputs and labels."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

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


@dataclass(frozen=True)
class StageChannels:
    """The channels of one block; the top sends no activations, the bottom no targets."""

    activation_in: Receiver
    activation_out: Sender | None
    target_in: Receiver
    target_out: Sender | None
    sync_out: Mapping[int, Sender]
    """To the copies of the block in other replicas."""
    sync_in: Mapping[int, Receiver]


def message_layouts(rules: RuleSet, job: Job, edge: Edge) -> Callable[[Tag], MessageLayout]:
    """The layout of every message of ``edge`` by its tag. Both ends compute the same function."""
    batch, batches = job.shard_size, job.batches
    plan = job.plan.of_replica(edge.replica)

    def spec(tag: Tag) -> MessageSpec:
        match tag.kind:
            case MessageKind.ACTIVATION:
                return rules.activation(edge.lower, batch // plan.parts)
            case MessageKind.TEST:
                return rules.test_activation(edge.lower, batches.evaluation_size(tag.e))
            case MessageKind.PREDICTION:
                return rules.prediction(edge.lower, batches.evaluation_size(tag.e))
            case MessageKind.GRADIENT | MessageKind.TARGET:
                target = rules.target(edge.lower, tag.n, batch)
                if tag.kind is MessageKind.GRADIENT or not plan.evaluates_after(tag.n):
                    return target
                return (*target, (batches.shape_of_labels(plan.evaluation(tag.n)), torch.int64))
            case MessageKind.SLICE | MessageKind.SUM:
                raise AssertionError("copies of a block have layouts of their own")

    @cache
    def layout(tensors: MessageSpec) -> MessageLayout:
        runtime = job.runtime
        return MessageLayout(
            tuple(TensorSpec(runtime.packed_shape(shape), runtime.packed_type(dtype)) for shape, dtype in tensors)
        )

    return lambda tag: layout(spec(tag))


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

        def edge(stream: Stream, lower: int) -> Edge:
            return Edge(stream, lower, replica)

        peers = [] if sync is None else [peer for peer in range(job.topology.replicas) if peer != replica]
        return StageChannels(
            activation_in=input_stream(job) if bottom else self._receiver(edge(Stream.ACTIVATION, block - 1)),
            activation_out=None if top else self._sender(edge(Stream.ACTIVATION, block)),
            target_in=label_stream(job) if top else self._receiver(edge(Stream.TARGET, block)),
            target_out=None if bottom else self._sender(edge(Stream.TARGET, block - 1)),
            sync_out={peer: self._sender(Edge(Stream.SYNC, block, replica, peer), sync) for peer in peers},
            sync_in={peer: self._receiver(Edge(Stream.SYNC, block, peer, replica), sync) for peer in peers},
        )

    def _layouts(self, edge: Edge, sync: ReplicaSync | None) -> Callable[[Tag], MessageLayout]:
        return message_layouts(self._rules, self._job, edge) if sync is None else sync_layouts(sync, edge)

    def _sender(self, edge: Edge, sync: ReplicaSync | None = None) -> Sender:
        if edge in self._local:
            return self._local[edge]
        return self._comm.sender(edge, self._layouts(edge, sync))

    def _receiver(self, edge: Edge, sync: ReplicaSync | None = None) -> Receiver:
        if edge in self._local:
            return self._local[edge]
        job = self._job
        if sync is not None:
            # All buckets of a meeting leave before any is taken, on both sides.
            return self._comm.receiver(edge, self._layouts(edge, sync), sync.buckets, job.plan.meetings(sync.buckets))
        depth = job.depth if edge.stream is Stream.ACTIVATION else job.target_depth or job.plan.lag
        return self._comm.receiver(edge, self._layouts(edge, None), depth, job.plan.messages(edge))
