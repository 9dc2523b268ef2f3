"""The contract between the engine and a local rule. A rule knows one block pair and no communication.

A rule of the user's own is a `LocalRule`, one for every block (`PerBlock`), or a `LocalAlgorithm`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from counterflow.algorithms.muon import hidden_weights
from counterflow.algorithms.optimizer import BatchPart, BlockOptimizer
from counterflow.config import AlgorithmConfig, OptimizerConfig
from counterflow.config.validators import named_call
from counterflow.models.custom import check_arguments, named_object
from counterflow.seeding import derive_seed

Payload = tuple[Tensor, ...]
Target = tuple[Tensor, ...]
Metrics = Mapping[str, Tensor]
Shape = tuple[int, ...]
MessageSpec = tuple[tuple[Shape, torch.dtype], ...]
"""Shape and type of every tensor of a message. Integers travel in that type, and numbers in that of ``engine.wire``; a
block gets them as int64 and float32."""


class Prediction(NamedTuple):
    """A block's prediction of labels."""

    labels: Tensor
    """int64 ``[B]``, or ``[B, T]`` of sequences."""
    scores: Tensor
    """``[*labels.shape, C]``: logits or negative distances, the greatest at the label."""

    @classmethod
    def of(cls, scores: Tensor) -> "Prediction":
        return cls(scores.argmax(-1), scores)


@dataclass(frozen=True)
class Task:
    """Inputs and labels of a data set, as shapes of single samples."""

    input_shape: Shape
    classes: int
    label_shape: Shape = ()
    """``()`` for one label a sample, ``(T,)`` for one at every position of a sequence."""

    @property
    def label_type(self) -> torch.dtype:
        """The smallest type of labels, ``0..classes-1``, in messages."""
        return torch.uint8 if self.classes <= 1 << 8 else torch.int16 if self.classes <= 1 << 15 else torch.int32

    def labels(self, batch: int) -> MessageSpec:
        """Those of ``batch`` samples in a message."""
        return (((batch, *self.label_shape), self.label_type),)


@dataclass(frozen=True)
class BlockContext:
    """All that a rule may know of its block pair ``number`` of ``blocks``, counted from the bottom."""

    number: int
    blocks: int
    module: nn.Module
    """The forward block."""
    input_shape: Shape
    """Shape of one sample of the block's input."""
    shape: Shape
    """Shape of one sample of the block's output."""
    task: Task
    optimizer_config: OptimizerConfig
    batches: int
    """Training batches of the run: learning-rate schedules end there."""
    layer_shapes: Sequence[Shape] = ()
    """Shape of one sample of the output of every layer of ``module``."""

    @property
    def is_top(self) -> bool:
        return self.number == self.blocks

    @property
    def is_bottom(self) -> bool:
        return self.number == 1

    @property
    def classes(self) -> int:
        return self.task.classes

    def optimizer(self, parameters: Iterable[nn.Parameter], scale: float = 1.0) -> BlockOptimizer:
        """The run's optimizer over ``parameters``, with ``scale`` times its learning rate."""
        hidden = hidden_weights(self.module, self.is_top)
        return BlockOptimizer(parameters, self.optimizer_config, self.batches, scale, hidden)


@dataclass(frozen=True)
class RuleContext:
    """The cut network and what it is trained on."""

    blocks: Sequence[nn.Module]
    shapes: Sequence[Shape]
    """Shape of one sample of each block's output, bottom to top."""
    task: Task
    optimizer: OptimizerConfig
    batches: int
    seed: int
    layer_shapes: Sequence[Sequence[Shape]] = ()
    """The same of the layers of each block."""

    def block(self, number: int) -> BlockContext:
        return BlockContext(
            number,
            len(self.blocks),
            self.blocks[number - 1],
            self.task.input_shape if number == 1 else self.shapes[number - 2],
            self.shapes[number - 1],
            self.task,
            self.optimizer,
            self.batches,
            self.layer_shapes[number - 1] if self.layer_shapes else (),
        )


class LocalRule(nn.Module, ABC):
    """Block pair ``k``: its forward block, its feedback block, and how both learn.

    The engine calls `receive_target` once for the target message of every batch, some batches early, and `make_target`
    at once afterwards. Then, batch by batch, and in each part by part, it calls `forward_message` and `update`, the
    latter with the `target_part` of a batch that has several. Where no targets come down, it
    calls neither `receive_target` nor `make_target`, and the target is empty.

    Unless a rule says otherwise, the target is the labels, which go down unchanged, and ``self.block`` is the forward
    block. What a rule keeps from batch to batch is parameters, buffers, and optimizers (`BlockOptimizer`) among its
    attributes: all that is in its ``state_dict``, and so in checkpoints.
    """

    block: nn.Module

    def receive_target(self, n: int, message: Payload) -> Target:
        """The target of batch ``n`` from the message from above, to be kept until the update on ``n``."""
        return message

    def make_target(self, n: int, target: Target) -> Payload:
        """``b_{k-1}(n)``, the target message for the block below."""
        return target

    def target_part(self, part: BatchPart, target: Target) -> Target:
        """The target of a part of a batch: the rows of every tensor that belong to it, unless a rule says otherwise."""
        return tuple(tensor.chunk(part.count)[part.index] for tensor in target)

    @abstractmethod
    def forward_message(self, message: Payload) -> Payload:
        """``a_k(n)``, the activation message for the block above; keeps what `update` needs."""

    def update(self, part: BatchPart, message: Payload, target: Target) -> Metrics:
        """Update ``theta_k`` and ``phi_k`` on (a part of) a batch, after `forward_message` of the same message.

        Returns scalars, among them ``loss``, and ``accuracy`` if the block can tell its own.
        """
        raise AssertionError("this block learns from gradients alone")

    def backward(self, part: BatchPart, message: Payload, gradient: Payload) -> tuple[Payload, Metrics]:
        """Update with the gradient of a batch from above; takes the batch's message from below again.

        Returns the gradient for the block below, and what `update` would.
        """
        raise AssertionError("this block learns locally")

    @abstractmethod
    def predict(self, message: Payload, target: Target) -> tuple[Payload, Prediction | Tensor | None]:
        """Handle a test batch, and update nothing.

        Args:
            message: The activation message from below.
            target: The target that was learnt last.

        Returns:
            The activation message for the block above, and this block's own `Prediction`; None if its rule has none;
            where predictions come down, the tensor that `decode_prediction` needs.
        """

    def decode_prediction(self, own: Tensor, message: Payload) -> Payload:
        """Make the message for the block below from a prediction that comes down.

        Args:
            own: The second result of `predict`.
            message: The message from above, empty at the top.

        Returns:
            At the bottom a `Prediction` with a row a block: ``[N, B]`` labels and ``[N, B, C]`` scores.
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

    def running_buffers(self) -> list[Tensor]:
        """Buffers, float32, that every batch changes: those of norms, unless a rule says otherwise. The copies of this
        block in replicas keep their mean."""
        norms = [module for module in self.modules() if isinstance(module, _NormBase) and module.training]
        moments = [moment for norm in norms for moment in (norm.running_mean, norm.running_var)]
        return [moment for moment in moments if moment is not None]

    @property
    def inference_modules(self) -> Sequence[nn.Module]:
        """The modules without which the network does not predict, the forward block first."""
        return (self.block,)

    def readout_module(self) -> nn.Module | None:
        """Module from the block's output to the scores that `predict` gives, outside of a run.

        None where the block has no prediction of its own; at the top, where its output is the scores. Where predictions
        come down, it ends before the `decoder_module` of this block.
        """
        return None

    def decoder_module(self) -> nn.Module | None:
        """Module by which `decode_prediction` takes a prediction one block down; None where none come down."""
        return None


class RuleSet(ABC):
    """The rules of all blocks of a network, and what crosses the wire between block k and k+1.

    Unless a subclass says otherwise, ``a_k`` goes up, labels come down, and the sum of all losses is reported.
    """

    def __init__(self, context: RuleContext) -> None:
        self.context = context
        self.shapes = context.shapes
        self.task = context.task

    @abstractmethod
    def rule(self, block: int) -> LocalRule:
        """The block pair ``block``, with parameters that depend on the seed and on nothing else."""

    @contextmanager
    def seeded(self, stream: str, block: int) -> Iterator[None]:
        """Within it, parameters come from the random stream of ``block``, whatever was drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.context.seed, stream, block))
            yield

    def activation(self, block: int, batch: int) -> MessageSpec:
        """The message that goes up from ``block`` for a training batch of ``batch`` samples."""
        return (((batch, *self.shapes[block - 1]), torch.float32),)

    def test_activation(self, block: int, batch: int) -> MessageSpec:
        """The message that goes up from ``block`` for a test batch of ``batch`` samples."""
        return (((batch, *self.shapes[block - 1]), torch.float32),)

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        """The target (or gradient) that comes down to ``block`` for training batch ``n`` of ``batch`` samples."""
        return self.task.labels(batch)

    def prediction(self, block: int, batch: int) -> MessageSpec:
        """The message that comes down to ``block`` for a test batch of ``batch`` samples (``predicts_down`` only)."""
        raise AssertionError("these rules predict where they are")

    def summarize(self, metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Metrics of the whole network from what `LocalRule.update` of all blocks returned, bottom to top."""
        return {"loss": sum(block["loss"] for block in metrics)}


class PerBlockRules(RuleSet):
    """The same kind of rule for every block, each made under a random stream of its own."""

    def __init__(self, context: RuleContext, stream: str, make: Callable[[BlockContext], LocalRule]) -> None:
        super().__init__(context)
        self._stream = stream
        self._make = make

    def rule(self, block: int) -> LocalRule:
        with self.seeded(self._stream, block):
            return self._make(self.context.block(block))


class LocalAlgorithm(AlgorithmConfig, ABC):
    """A local learning rule that ``algorithm=`` or a Trainer can name: options, and the rules made of them."""

    @abstractmethod
    def rule_set(self, context: RuleContext) -> RuleSet:
        """The rules of all blocks of ``context``."""


@dataclass(kw_only=True)
class CustomRule(LocalAlgorithm):
    """A rule of the user's own by its name: ``algorithm=custom algorithm.target=package.module.Class``."""

    name: str = "custom"
    target: str = ""
    """``package.module.Class``: a `LocalRule` that is made with a `BlockContext` and ``args``."""
    args: Any = None
    """Named arguments of the rule, ``{name: value, ..}``; None are no arguments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.args = named_call("algorithm", self.target, self.args, "LocalRule", "Class")

    def rule_set(self, context: RuleContext) -> RuleSet:
        return PerBlock(named_object("algorithm", self.target), **self.args).rule_set(context)


class PerBlock(CustomRule):
    """A rule of the user's own: ``PerBlock(Readout, smoothing=0.1)`` makes ``Readout(block, smoothing=0.1)`` for every
    block, with ``block`` a `BlockContext`.
    """

    def __init__(self, rule: type[LocalRule], /, **options: Any) -> None:
        """Raises ``ValueError`` where ``rule`` is no `LocalRule` or does not take ``options``."""
        if not (isinstance(rule, type) and issubclass(rule, LocalRule)):
            raise ValueError(f"algorithm.target={getattr(rule, '__name__', rule)}: must be a subclass of LocalRule")
        self.name = "custom"
        self.target = f"{rule.__module__}.{rule.__qualname__}"
        self.args = options
        self._rule = rule
        check_arguments("algorithm", self.target, rule, options, None)

    def rule_set(self, context: RuleContext) -> RuleSet:
        return PerBlockRules(context, self.name, lambda block: self._rule(block, **self.args))
