"""Messages that a stage sends share no memory with those that it receives."""

from typing import Any

import torch

from counterflow.algorithms.optimizer import BatchPart
from counterflow.checkpoint import CheckpointWriter
from counterflow.engine.channels import StageChannels
from counterflow.engine.evaluation import ActivationRecorder
from counterflow.engine.run_context import RunContext
from counterflow.engine.stage import Stage
from counterflow.message import Tag
from counterflow.trainer.job_builder import load_job
from counterflow.transport import Payload
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL


class Through(torch.nn.Module):
    """A rule of a block that returns the very tensor that it received, and another one of its own."""

    def forward_message(self, message: Payload) -> Payload:
        return message[0].flatten(1), message[0] + 1


class Buffer:
    """A receiver with one buffer for all messages."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(4, 2, 3)

    def receive(self, tag: Tag) -> Payload:
        return (self.tensor.fill_(tag.n),)


class Holding:
    """A sender from which nothing has left yet."""

    def __init__(self) -> None:
        self.sent: list[Payload] = []

    def send(self, tag: Tag, tensors: Payload) -> None:
        self.sent.append(tensors)


def test_a_sent_message_outlives_the_receivers_buffer() -> None:
    below: Any = Buffer()
    up: Any = Holding()
    job = load_job(configured(*SMALL, "train.steps=3"))
    sent = ((4, 6), torch.float32), ((4, 2, 3), torch.float32)
    channels = StageChannels(below, up, below, None, lambda tag: sent, {}, {})
    rule: Any = Through()
    nothing: Any = None
    context = RunContext(nothing, nothing, CheckpointWriter())
    stage = Stage(1, rule, channels, job, context, ActivationRecorder(0, 0, job.plan))
    for n in range(3):
        stage.forward(BatchPart(n))
    assert [(float(a.mean()), float(b.mean())) for a, b in up.sent] == [(0, 1), (1, 2), (2, 3)]
    assert [tuple(a.shape) for a, _ in up.sent] == [(4, 6)] * 3
