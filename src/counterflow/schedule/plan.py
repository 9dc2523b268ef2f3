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
    """

    batches: int
    lag: int
    evaluate_every: int = 0
    test_batches: int = 0

    def distance(self, block: int) -> int:
        """``D_k``: how many batches before its activation a target leaves block ``block`` for the one below."""
        return self.lag * (block - 1)

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
        """What enters at the top, and every target edge carries, in order."""
        return (Tag(Kind.TARGET, n) for n in range(self.batches))

    def messages(self, stream: Stream) -> Iterator[Tag]:
        return self.activations() if stream is Stream.ACTIVATION else self.targets()
