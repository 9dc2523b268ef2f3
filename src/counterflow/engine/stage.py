"""A block pair, or a copy of one in a replica, between its channels: the actions of its program."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from counterflow.algorithms.optimizer import BatchPart, BlockOptimizer
from counterflow.algorithms.rule import LocalRule, Metrics, Prediction, Target
from counterflow.algorithms.weight_average import WeightAverage
from counterflow.checkpoint import BlockState
from counterflow.engine.channels import StageChannels
from counterflow.engine.evaluation import AccuracyMeter, ActivationRecorder
from counterflow.engine.job import Job
from counterflow.engine.replica_sync import GradientSync, ReplicaSync
from counterflow.engine.run_context import RunContext
from counterflow.message import MessageKind, Tag
from counterflow.models.freezing import train_unfrozen
from counterflow.topology import Piece
from counterflow.trace.recorder import span
from counterflow.transport import Payload, Receiver, Sender


class Stage:
    """Runs the rule of ``block``. `target` of a batch comes ``plan.lead(block)`` batches before its `forward`."""

    def __init__(
        self,
        block: int,
        rule: LocalRule,
        channels: StageChannels,
        job: Job,
        context: RunContext,
        activations: ActivationRecorder,
        sync: ReplicaSync | None = None,
    ) -> None:
        """``job`` is as the block's replica sees it; ``sync`` meets the copies in other replicas, if there are any."""
        self.block = block
        self.rule = rule
        self.channels = channels
        self._plan = job.plan
        self._seed = job.seed
        self._batches = job.batches
        self._runtime = job.runtime
        self._context = context
        self._activations = activations
        self.sync = sync
        self._replica = job.replica
        self.number = job.number(block)
        self._frozen = job.frozen_layers(block)
        self.average: WeightAverage | None = None
        if job.optimizer.average:  # part of the rule's state
            self.average = WeightAverage(rule, rule.inference_modules[0], job.optimizer.average)
            rule.add_module("weight_average", self.average)
        if context.recorder is not None:
            if job.replica:
                context.recorder.lanes[self.number] = str(Piece(block, job.replica))
            for module in rule.modules():
                if isinstance(module, BlockOptimizer):
                    module.observe, module.now = self._record, context.recorder.now
        self._targets: dict[int, Target] = {}
        self._learnt: Target = ()
        self._input: Payload = ()
        self._metrics: list[Metrics] = []
        """Those of the parts of the current batch so far."""
        self._in_flight: dict[int, Payload] = {}
        """Messages from below until their gradients come."""
        self._test_labels: dict[int, Tensor] = {}
        """Of a whole evaluation by training batch; where predictions come down, the bottom's of each batch by ``e``."""
        self._judged = 0
        """Samples of the current evaluation so far."""
        self._own: dict[int, Tensor] = {}
        """This block's part in the prediction of each test batch, until the rest of it comes down."""
        self._meter = AccuracyMeter(job.batches.dataset.tokens_per_byte)
        self._sent: deque[tuple[int, Payload]] = deque(maxlen=job.plan.max_in_flight)
        """The last messages to the block below, which it may not have taken."""

    def target(self, n: int) -> None:
        tag = Tag(MessageKind.TARGET, n)
        # A target outlives its channel's buffer, and it is small: it is copied.
        message = tuple(tensor.clone() for tensor in self._receive(self.channels.target_in, tag))
        self.channels.target_in.release()
        tests: Payload = ()
        if self._plan.evaluates_after(n):
            *rest, last = message
            message, tests = tuple(rest), (last,)
            self._test_labels[n] = last
        self._targets[n] = self.rule.receive_target(n, message)
        if self.channels.target_out is not None:
            with span(self._context.recorder, "emit", self.number, n):
                below = self.rule.make_target(n, self._targets[n])
            self._send(self.channels.target_out, tag, (*below, *tests))

    def forward(self, part: BatchPart) -> None:
        n = part.n
        tag = Tag(MessageKind.ACTIVATION, n, part.index)
        self._input = self._receive(self.channels.activation_in, tag)
        if self._plan.gradients_from:
            # What autograd saves of it outlives the channel's buffer, too.
            self._input = self._in_flight[n] = tuple(tensor.clone() for tensor in self._input)
        self._runtime.seed_forward(self._seed, self.block, n, part.index, self._replica)
        with self._runtime.autocast():
            activation = _apart(self.rule.forward_message(self._input), self._input)
        self._send(self.channels.activation_out, tag, activation)
        if self._plan.gradients_from:
            self._input = ()
            self.channels.activation_in.release()

    def backward(self, n: int) -> None:
        tag = Tag(MessageKind.GRADIENT, n)
        gradient = self._receive(self.channels.target_in, tag)
        if self.channels.activation_out is None and self._plan.evaluates_after(n):  # what enters at the top are labels
            *labels, self._test_labels[n] = gradient
            gradient = tuple(labels)
        self._runtime.seed_forward(self._seed, self.block, n)
        with self._runtime.autocast():
            below, metrics = self.rule.backward(BatchPart(n), self._in_flight.pop(n), gradient)
        if self.average is not None:
            self.average.update(n)
        below = _apart(below, gradient)
        self.channels.target_in.release()
        self._send(self.channels.target_out, tag, below)
        self._context.report(self._runtime.device, self.block, n, metrics)

    def learn(self, part: BatchPart) -> None:
        n = part.n
        if part.index == 0:
            self._learnt = self._targets.pop(n, ())
        target = self._learnt if part.count == 1 else self.rule.target_part(part, self._learnt)
        if isinstance(self.sync, GradientSync):
            self.sync.send = partial(self._send_bucket, n)
        recorder = self._context.recorder
        start = recorder.now() if recorder is not None else None
        with self._runtime.autocast():
            metrics = self.rule.update(part, self._input, target)
        if self.average is not None and part.is_last and self.sync is None:
            self.average.update(n)
        if recorder is not None:
            recorder.rest("loss", self.number, n, start, recorder.now())
        self._input = ()
        self.channels.activation_in.release()
        if part.count > 1:
            self._metrics.append(metrics)
            if not part.is_last:
                return
            metrics = _means(self._metrics)
            self._metrics.clear()
        self._context.report(self._runtime.device, self.number, n, metrics)

    def scatter(self, n: int) -> None:
        assert self.sync is not None
        self.sync.scatter(n < self._plan.start, partial(self._send_bucket, n))

    def _send_bucket(self, n: int, bucket: int) -> None:
        assert self.sync is not None
        for peer, channel in self.channels.sync_out.items():
            self._transmit(channel, Tag(MessageKind.SLICE, n, bucket), (self.sync.slice(bucket, peer),))

    def reduce(self, n: int) -> None:
        assert self.sync is not None
        for bucket in range(self.sync.buckets):
            mean = self.sync.reduce(bucket, self._take_from_copies(Tag(MessageKind.SLICE, n, bucket)))
            self._release_sync()
            for channel in self.channels.sync_out.values():
                self._transmit(channel, Tag(MessageKind.SUM, n, bucket), (mean,))

    def gather(self, n: int) -> None:
        assert self.sync is not None
        for bucket in range(self.sync.buckets):
            self.sync.take(bucket, self._take_from_copies(Tag(MessageKind.SUM, n, bucket)))
            self._release_sync()
        self.sync.learn(n)
        if self.average is not None:
            self.average.update(n)

    def _take_from_copies(self, tag: Tag) -> list[Tensor]:
        return [self._take(channel, tag)[0] for channel in self.channels.sync_in.values()]

    def _release_sync(self) -> None:
        for channel in self.channels.sync_in.values():
            channel.release()

    @torch.no_grad()
    def evaluate(self, n: int, e: int) -> None:
        tag = Tag(MessageKind.TEST, n, e)
        message = self._receive(self.channels.activation_in, tag)
        if self._plan.predicts_down and self.channels.target_out is None:
            *inputs, self._test_labels[e] = message
            message = tuple(inputs)
        with self._predicting():
            activation, own = self.rule.predict(message, self._learnt)
            if self._plan.split_ending(e) == "validation":
                evaluated = self.rule.inference_modules[0].state_dict()
                self._context.checkpoints.save_evaluated(self.block, n + 1, evaluated)
        activation = _apart(activation, message)
        self._activations.offer(n, e, activation[0])
        self._send(self.channels.activation_out, tag, activation)
        self.channels.activation_in.release()
        if self._plan.predicts_down:
            assert isinstance(own, Tensor), "a rule that predicts at the bottom has a part in it"
            self._own[e] = own
            return
        if isinstance(own, Prediction):
            labels, view = self._test_labels[n][self._judged :][: len(own.labels)], self._batches.view(e)
            self._judged += len(labels) if view.plain else 0  # all views of a sample have one label
            self._meter.add(own.labels.unsqueeze(0), own.scores.unsqueeze(0), labels, view)
        self._report_split(n, e)
        if e == self._plan.evaluation(n)[-1]:
            self._test_labels.pop(n, None)
            self._judged = 0

    @torch.no_grad()
    def predict(self, n: int, e: int) -> None:
        tag = Tag(MessageKind.PREDICTION, n, e)
        message = self._receive(self.channels.target_in, tag)
        with self._predicting():
            below = _apart(self.rule.decode_prediction(self._own.pop(e), message), message)
        self.channels.target_in.release()
        self._send(self.channels.target_out, tag, below)
        if self.channels.target_out is None:
            labels, scores = below
            self._meter.add(labels, scores, self._test_labels.pop(e), self._batches.view(e))
            self._report_split(n, e)

    def state(self, n: int) -> BlockState:
        """After batch ``n``. Its tensors are those that the block goes on with: to be copied before it does."""
        taken = replace(self._plan, start=n + 1).taken(self.block - 1) if not self._plan.ends_with(n) else n + 1
        equal = isinstance(self.sync, GradientSync) and self._replica > 0
        return BlockState(
            {} if equal else self.rule.state_dict(),  # the copy in the first replica has the same
            self._targets,
            self._test_labels,
            self._in_flight,
            {batch: message for batch, message in self._sent if batch >= taken},
        )

    def restore(self, state: BlockState) -> None:
        """Go on from ``state``; what was under way to the block below is sent by `resend`."""
        self.rule.restore(state.rule)
        self._targets = dict(state.targets)
        self._test_labels = dict(state.labels)
        self._in_flight = dict(state.in_flight)
        self._sent.extend(state.sent.items())

    def resend(self, n: int) -> None:
        assert self.channels.target_out is not None, "nothing is below the bottom block"
        kind = MessageKind.GRADIENT if self._plan.gradients_from else MessageKind.TARGET
        self._transmit(self.channels.target_out, Tag(kind, n), dict(self._sent)[n])

    def close(self) -> None:
        channels = self.channels
        senders = (channels.activation_out, channels.target_out, *channels.sync_out.values())
        for channel in (*senders, channels.activation_in, channels.target_in, *channels.sync_in.values()):
            if channel is not None:
                channel.close()

    @contextmanager
    def _predicting(self) -> Iterator[None]:
        self.rule.eval()
        averages = nullcontext() if self.average is None else self.average.applied()
        outer = nullcontext() if self.sync is None else self.sync.evaluated()
        with averages, outer, self._runtime.autocast():
            yield
        train_unfrozen(self.rule, self._frozen)

    def _report_split(self, n: int, e: int) -> None:
        """Report the accuracies of a split if ``e`` is its last batch: at the bottom, of all blocks, if predictions
        come down; else of this block, which may have none."""
        split = self._plan.split_ending(e)
        if split is not None:
            for block, metrics in enumerate(self._meter.take(split) or [{}], self.block):
                self._context.callback.on_eval(block, n, split, metrics)

    def _receive(self, channel: Receiver, tag: Tag) -> Payload:
        return self._runtime.unpack(self._take(channel, tag))

    def _take(self, channel: Receiver, tag: Tag) -> Payload:
        with span(self._context.recorder, "receive", self.number, tag.n, self._part(tag)):
            start = perf_counter()
            message = channel.receive(tag)
            self._context.waits.receive += perf_counter() - start
        return message

    def _send(self, channel: Sender | None, tag: Tag, tensors: Payload) -> None:
        """Send a message, unless there is no ``channel``: above the top, and below the bottom."""
        if channel is None:
            return
        message = self._runtime.pack(tag.kind, tensors, self.channels.specs(tag))
        if tag.kind in (MessageKind.TARGET, MessageKind.GRADIENT):
            self._sent.append((tag.n, message))
        self._transmit(channel, tag, message)

    def _transmit(self, channel: Sender, tag: Tag, message: Payload) -> None:
        with span(self._context.recorder, "send", self.number, tag.n, self._part(tag)):
            start = perf_counter()
            channel.send(tag, message)
            self._context.waits.send += perf_counter() - start

    def _part(self, tag: Tag) -> int:
        """Number of the test batch of ``tag``, or of the part of a training batch; -1 for a whole one."""
        parts = self._plan.parts if tag.kind is MessageKind.ACTIVATION else 1
        return tag.e if parts > 1 or tag.kind in (MessageKind.TEST, MessageKind.PREDICTION) else -1

    def _record(self, name: str, n: int, start: Any, end: Any) -> None:
        assert self._context.recorder is not None
        self._context.recorder.add(name, self.number, n, start, end)


def _apart(tensors: Payload, message: Payload) -> Payload:
    """``tensors`` without memory shared with ``message``, whose buffer is used again before they have left."""
    taken = {tensor.untyped_storage().data_ptr() for tensor in message}
    return tuple(t.clone() if t.untyped_storage().data_ptr() in taken else t for t in tensors)


def _means(parts: Sequence[Metrics]) -> dict[str, Tensor]:
    """Metrics of a batch from those of its parts, which are equally large."""
    return {name: torch.stack([metrics[name] for metrics in parts]).mean() for name in parts[0]}
