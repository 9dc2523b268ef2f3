"""What enters the column from outside, as channels: inputs at the bottom, labels at the top."""

from collections.abc import Generator

import torch

from counterflow.data.batch_loader import BatchLoader
from counterflow.data.prefetch import prefetch
from counterflow.engine.numerics import Numerics
from counterflow.message import MessageKind, Tag
from counterflow.schedule import RunPlan
from counterflow.transport import Payload

Item = tuple[Tag, Payload]


class InputChannel:
    """The receiving end of a stream that this process makes itself."""

    def __init__(self, items: Generator[Item], device: torch.device) -> None:
        self._items = items
        self._device = device

    def receive(self, tag: Tag) -> Payload:
        found, tensors = next(self._items)
        assert found == tag, f"{found} came where {tag} was expected"
        return tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)

    def release(self) -> None:
        """Nothing to give back: the tensors belong to whoever holds them."""

    def close(self) -> None:
        self._items.close()


def inputs(batches: BatchLoader, plan: RunPlan, numerics: Numerics) -> InputChannel:
    """The network's input of every training and test batch, each prepared while the one before trains.

    With the labels of the batch, where these enter at the bottom too.
    """

    def items() -> Generator[Item]:
        for tag in plan.activations():
            test = tag.kind is MessageKind.TEST
            (x,) = numerics.pack((batches.evaluation_inputs(tag.e) if test else batches.inputs(tag.n),))
            if plan.predicts_down:
                yield tag, (x, batches.evaluation_labels(tag.e) if test else batches.labels(tag.n))
            else:
                yield tag, (x,)

    # Data that lies on a GPU is prepared there, in the order of its stream: a thread would only be in the way.
    return InputChannel(items() if batches.resident else prefetch(items()), numerics.device)


def labels(batches: BatchLoader, plan: RunPlan, top: int, device: torch.device) -> InputChannel:
    """What enters block ``top``: the labels of every training batch, and of all batches of the evaluation after it."""

    def items() -> Generator[Item]:
        for tag in plan.targets(top):
            if tag.kind is MessageKind.PREDICTION:
                yield tag, ()
            else:
                tests = (batches.labels_of(plan.evaluation(tag.n)),) if plan.evaluates_after(tag.n) else ()
                yield tag, (batches.labels(tag.n), *tests)

    return InputChannel(items(), device)
