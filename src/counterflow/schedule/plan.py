"""What happens at which batch: everything about a run's course that is a function of ``n``."""

from collections.abc import Iterator
from dataclasses import dataclass

from counterflow.message import Kind, Tag
from counterflow.topology import Stream


@dataclass(frozen=True)
class Plan:
    """The course of a run of ``batches`` training batches.

    ``lag`` is per hop; 0 is the locked, sequential algorithm (`engine.lag=exact`). After every ``evaluate_every``
    batches (0: only after the last) come ``test_batches`` batches of test data.

    What comes down depends on the rule: targets while training, which a lag lets leave early; or, with
    ``predicts_down``, nothing while training, so that there is nothing to lag, and predictions of every test batch;
    or the gradients of all activations, from the top block ``gradients_from`` (0: none), which an activation has to
    reach first.
    """

    batches: int
    lag: int
    evaluate_every: int = 0
    test_batches: int = 0
    predicts_down: bool = False
    gradients_from: int = 0

    def __post_init__(self) -> None:
        assert not (self.predicts_down and self.gradients_from)

    def distance(self, block: int) -> int:
        """``D_k``: how many batches before its activation a target leaves block ``block`` for the one below."""
        return self.lag * (block - 1) if self.targets_down else 0

    @property
    def targets_down(self) -> bool:
        return not (self.predicts_down or self.gradients_from)

    def evaluates_after(self, n: int) -> bool:
        if not self.test_batches:
            return False
        return n == self.batches - 1 or (self.evaluate_every > 0 and (n + 1) % self.evaluate_every == 0)

    def activations(self) -> Iterator[Tag]:
        """What enters at the bottom, and every activation edge carries, in order."""
        for n in range(self.batches):
            yield Tag(Kind.ACTIVATION, n)
            if self.evaluates_after(n):
                yield from (Tag(Kind.TEST, n, e) for e in range(self.test_batches))

    def targets(self) -> Iterator[Tag]:
        """What every target edge carries, in order; targets also enter at the top."""
        for n in range(self.batches):
            if self.targets_down:
                yield Tag(Kind.TARGET, n)
            elif self.gradients_from:
                yield Tag(Kind.GRADIENT, n)
            elif self.evaluates_after(n):
                yield from (Tag(Kind.PREDICTION, n, e) for e in range(self.test_batches))

    def messages(self, stream: Stream) -> Iterator[Tag]:
        return self.activations() if stream is Stream.ACTIVATION else self.targets()
