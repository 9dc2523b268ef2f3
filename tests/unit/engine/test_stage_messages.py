"""A station lets go of its neighbours' buffers."""

from typing import Any

import torch
from counterflow.engine.evaluation import ActivationRecorder
from counterflow.engine.runtime import Runtime

from counterflow.engine.stage import Stage, StageChannels, WaitTimes
from counterflow.message import Tag
from counterflow.schedule import RunPlan
from counterflow.transport import Payload


class Through(torch.nn.Module):
    """A rule of a block that puts out the very tensor that it takes, and another one of its own."""

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


def test_what_is_sent_does_not_lie_where_the_next_message_comes() -> None:
    below: Any = Buffer()
    up: Any = Holding()
    plan = RunPlan(batches=3, lag=1)
    runtime = Runtime(torch.device("cpu"))
    ports = StageChannels(below, up, below, None)
    rule: Any = Through()
    callback: Any = None
    stage = Stage(1, rule, ports, plan, 0, runtime, callback, WaitTimes(), ActivationRecorder(0, plan))
    for n in range(3):
        stage.forward(n)
    assert [(float(a.mean()), float(b.mean())) for a, b in up.sent] == [(0, 1), (1, 2), (2, 3)]
    assert [tuple(a.shape) for a, _ in up.sent] == [(4, 6)] * 3
