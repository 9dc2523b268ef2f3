"""Course of a run, as a function of the batch index ``n``."""

from collections.abc import Iterator
from dataclasses import dataclass

from counterflow.message import MessageKind, Tag
from counterflow.topology import Edge, Stream


@dataclass(frozen=True)
class RunPlan:
    """The course of a run of ``batches`` training batches.

    ``lag`` is per hop; 0 is the locked, sequential algorithm (`engine.lag=exact`). After the last batch come
    ``validation_batches`` batches of held out training data and then ``test_batches`` of test data; after every
    ``evaluate_every`` batches before it (0: never) the former alone, or the latter if nothing is held out.

    What comes down depends on the rule: targets while training, which a lag lets leave early; or, with
    ``predicts_down``, nothing while training, so that there is nothing to lag, and predictions of every test batch;
    or the gradients of all activations, from the top block ``gradients_from`` (0: none), which an activation has to
    reach first.

    Every block writes a checkpoint after every ``checkpoint_every`` batches, and after the last one (0: never). A run
    that goes on from one begins with batch ``start``.
    """

    batches: int
    lag: int
    evaluate_every: int = 0
    test_batches: int = 0
    predicts_down: bool = False
    gradients_from: int = 0
    validation_batches: int = 0
    checkpoint_every: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        assert not (self.predicts_down and self.gradients_from)
        assert 0 <= self.start < self.batches

    def lead(self, block: int) -> int:
        """``D_k``: number of batches by which a target leaves ``block`` for the block below before its activation."""
        return self.lag * (block - 1) if self.targets_down else 0

    @property
    def targets_down(self) -> bool:
        return not (self.predicts_down or self.gradients_from)

    def taken(self, block: int) -> int:
        """Number of training messages that ``block`` takes from above before batch ``start``.

        Those that the block above had sent beyond are the state of the channel between the two.
        """
        if self.targets_down:
            return min(self.start + self.lead(block), self.batches) if self.start else 0
        return max(0, self.start - 2 * (self.gradients_from - block)) if self.gradients_from else self.start

    @property
    def max_in_flight(self) -> int:
        """Messages from above, at most, that a block has not taken when the block above has finished the same batch."""
        return 2 if self.gradients_from else self.lag if self.targets_down else 0

    def first_steady(self, blocks: int) -> int:
        """The first batch for which a column of ``blocks`` is filled, if the run is long enough."""
        return self.start + min(blocks, (self.batches - self.start) // 2)

    def saves_after(self, n: int) -> bool:
        """True if a checkpoint follows batch ``n``."""
        return self.checkpoint_every > 0 and (n == self.batches - 1 or (n + 1) % self.checkpoint_every == 0)

    def evaluation(self, n: int) -> range:
        """The evaluation batches ``e`` that follow batch ``n``."""
        if n == self.batches - 1:
            return range(self.validation_batches + self.test_batches)
        if self.evaluate_every > 0 and (n + 1) % self.evaluate_every == 0:
            return range(self.validation_batches or self.test_batches)
        return range(0)

    def evaluates_after(self, n: int) -> bool:
        return len(self.evaluation(n)) > 0

    def split_ending(self, e: int) -> str | None:
        """The split whose last evaluation batch is ``e``, if any."""
        if e == self.validation_batches + self.test_batches - 1:
            return "test" if self.test_batches else "validation"
        return "validation" if e == self.validation_batches - 1 else None

    def activations(self) -> Iterator[Tag]:
        """Messages that enter at the bottom and that every activation edge carries, in order."""
        for n in range(self.start, self.batches):
            yield Tag(MessageKind.ACTIVATION, n)
            yield from (Tag(MessageKind.TEST, n, e) for e in self.evaluation(n))

    def targets(self, block: int) -> Iterator[Tag]:
        """Messages that ``block`` takes from above, in order; those of the top block are labels."""
        for n in range(self.taken(block), self.batches):
            if self.targets_down:
                yield Tag(MessageKind.TARGET, n)
            elif self.gradients_from:
                yield Tag(MessageKind.GRADIENT, n)
            else:
                yield from (Tag(MessageKind.PREDICTION, n, e) for e in self.evaluation(n))

    def messages(self, edge: Edge) -> Iterator[Tag]:
        """Messages that ``edge`` carries, in order."""
        return self.activations() if edge.stream is Stream.ACTIVATION else self.targets(edge.destination)
