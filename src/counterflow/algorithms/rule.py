"""What an engine asks of a local rule. A rule knows one block pair and no communication."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from counterflow.config import AlgorithmConfig, OptimizerConfig
from counterflow.seeding import derive_seed

Payload = tuple[Tensor, ...]
Target = tuple[Tensor, ...]
Metrics = Mapping[str, Tensor]
Shape = tuple[int, ...]
MessageSpec = tuple[tuple[Shape, torch.dtype], ...]
"""Shape and type of every tensor of a message."""


@dataclass(frozen=True)
class Task:
    """What a network is trained on, in the shapes of single samples."""

    input_shape: Shape
    classes: int
    label_shape: Shape = ()
    """``()`` for one label a sample, ``(T,)`` for one at every position of a sequence."""


class LocalRule(nn.Module, ABC):
    """Block pair ``k``: its forward block, its feedback block, and how both learn.

    The engine calls `receive_target` once for the target message of every batch, some batches early, and `make_target`
    at once afterwards. Then, batch by batch, it calls `forward_message` and `update`. Where no targets come down, it
    calls neither `receive_target` nor `make_target`, and the target is empty.

    What a rule keeps from batch to batch is parameters, buffers, and optimizers (`BlockOptimizer`) among its
    attributes: all that is in its ``state_dict``, and so in checkpoints.
    """

    def receive_target(self, n: int, message: Payload) -> Target:
        """What the message from above says about batch ``n``, to be kept until ``n`` is learnt."""
        raise AssertionError("no targets come down")

    def make_target(self, n: int, target: Target) -> Payload:
        """``b_{k-1}(n)``, the target message for the block below."""
        raise AssertionError("no targets come down")

    @abstractmethod
    def forward_message(self, message: Payload) -> Payload:
        """``a_k(n)``, the activation message for the block above; keeps what `update` needs."""

    def update(self, n: int, message: Payload, target: Target) -> Metrics:
        """Update ``theta_k`` and ``phi_k`` on batch ``n``, after `forward_message` of the same message from below.

        Returns scalars, among them ``loss``, and ``accuracy`` if the block can tell its own.
        """
        raise AssertionError("this block learns from gradients alone")

    def backward(self, n: int, message: Payload, gradient: Payload) -> tuple[Payload, Metrics]:
        """Where gradients come down: update with that of batch ``n``, whose message from below is here again.

        Returns the gradient for the block below, and what `update` would.
        """
        raise AssertionError("this block learns locally")

    @abstractmethod
    def predict(self, message: Payload, target: Target) -> tuple[Payload, Tensor | None]:
        """For a test batch: the activation message for the block above, and what this block says about the labels.

        That is its own prediction of them, ``[B]``; None if its rule has none; or, where predictions come down, what
        `decode_prediction` needs. ``target`` is the one that was learnt last. Nothing is updated.
        """

    def decode_prediction(self, own: Tensor, message: Payload) -> Payload:
        """Where predictions come down: from `predict`'s own part and the message from above (empty at the top), the
        one for the block below. The bottom's holds one tensor: the labels as every block predicts them, ``[N, B]``.
        """
        raise AssertionError("this rule predicts where it is")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, the ``state_dict`` of such a rule. ``RuntimeError`` if it is another one's."""
        for prefix, module in self.named_modules():
            for name in [name for name, buffer in module._buffers.items() if buffer is None]:
                key = f"{prefix}.{name}" if prefix else name
                if key in state:  # a buffer that comes with the first message
                    module.register_buffer(name, state[key].clone())
        self.load_state_dict(state)

    @property
    @abstractmethod
    def inference_modules(self) -> Sequence[nn.Module]:
        """The modules without which the network does not predict, the forward block first; all others only help to
        learn."""


class RuleSet(ABC):
    """The rules of all blocks of a network, and what crosses the wire between block k and k+1."""

    @abstractmethod
    def rule(self, block: int) -> LocalRule:
        """The block pair ``block``, with parameters that depend on the seed and on nothing else."""

    @abstractmethod
    def activation(self, block: int, batch: int) -> MessageSpec:
        """The message that goes up from ``block`` for a training batch of ``batch`` samples."""

    @abstractmethod
    def test_activation(self, block: int, batch: int) -> MessageSpec:
        """The message that goes up from ``block`` for a test batch of ``batch`` samples."""

    @abstractmethod
    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        """The target (or gradient) that comes down to ``block`` for training batch ``n`` of ``batch`` samples."""

    def prediction(self, block: int, batch: int) -> MessageSpec:
        """The message that comes down to ``block`` for a test batch of ``batch`` samples (``predicts_down`` only)."""
        raise AssertionError("these rules predict where they are")

    @abstractmethod
    def summarize(self, figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The figures of the whole system from what `LocalRule.update` of all blocks returned, bottom to top."""


class Algorithm(RuleSet):
    """A system of local rules that ``algorithm=`` can name.

    Unless a rule says otherwise, ``a_k`` goes up, labels come down, and the sum of all losses is reported.
    """

    Config: ClassVar[type[AlgorithmConfig]]
    """Its options; the default of ``name`` is what ``algorithm=`` calls it."""

    predicts_down: ClassVar[bool] = False
    """Labels enter at the bottom, no targets come down while training, and the prediction comes out at the bottom."""

    def __init__(
        self,
        config: Any,
        optimizer: OptimizerConfig,
        blocks: Sequence[nn.Module],
        shapes: Sequence[Shape],
        task: Task,
        batches: int,
        seed: int,
    ) -> None:
        """``config`` is a `Config`; ``shapes`` are those of the blocks' outputs for one sample, bottom to top.

        ``batches`` is how many the run has: schedules of learning rates end there.
        """
        self.config = config
        self.optimizer = optimizer
        self.blocks = blocks
        self.shapes = shapes
        self.task = task
        self.batches = batches
        self.seed = seed

    @contextmanager
    def seeded(self, block: int) -> Iterator[None]:
        """Within it, parameters come from the stream of this algorithm and ``block``, whatever was drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, self.Config.name, block))
            yield

    def activation(self, block: int, batch: int) -> MessageSpec:
        return (((batch, *self.shapes[block - 1]), torch.float32),)

    def test_activation(self, block: int, batch: int) -> MessageSpec:
        return (((batch, *self.shapes[block - 1]), torch.float32),)

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        return (((batch, *self.task.label_shape), torch.int64),)

    def summarize(self, figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {"loss": sum(block["loss"] for block in figures)}
