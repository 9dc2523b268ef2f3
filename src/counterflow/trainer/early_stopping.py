"""Early stopping (``train.patience``): the decision of rank 0, and the last batch, which all ranks derive from it."""

from collections.abc import Callable, Mapping

from counterflow.engine.job import Job
from counterflow.transport import Communicator


def is_exhausted(scores: Mapping[int, float], patience: int) -> bool:
    """True if ``patience`` evaluations in a row ever brought no higher score than the best one before them.

    Args:
        scores: Score of every evaluation so far, by the training batches before it.
        patience: Evaluations that may follow the best one.
    """
    best, since = -float("inf"), 0
    for _, score in sorted(scores.items()):
        best, since = (score, 0) if score > best else (best, since + 1)
        if since >= patience:
            return True
    return False


class Patience:
    """Decides after every evaluation whether the run ends early, and publishes it; on rank 0."""

    def __init__(self, patience: int, scores: Mapping[int, float], comm: Communicator) -> None:
        """``scores`` are those of every evaluation before this start of the run, by the training batches before it."""
        self._patience = patience
        self._comm = comm
        self._scores: dict[int, float] = {}
        for batches in sorted(scores):
            self.add_score(batches, scores[batches])

    def add_score(self, batches: int, score: float) -> None:
        """Take the score of the evaluation after ``batches`` training batches; later ones have to come later."""
        self._scores[batches] = score
        self._comm.publish(_key(batches), str(is_exhausted(self._scores, self._patience)))


class EarlyEnd:
    """Last batch of a run as evaluations decide it, the same on all ranks.

    A decision takes effect so many batches after its evaluation that no block has touched a later batch yet: targets
    leave ahead of their batch, and receives are posted ahead. Where the evaluation is slow, the blocks wait for it.
    """

    def __init__(self, job: Job, comm: Communicator, check: Callable[[], None]) -> None:
        """``check`` may raise while a decision is awaited."""
        plan = job.plan
        self._every = plan.evaluate_every
        posted = max(job.depth, plan.lag if job.target_depth is None else job.target_depth)
        self._notice = plan.lead(job.topology.blocks) + posted + 2
        self._comm = comm
        self._check = check
        self._decisions: dict[int, bool] = {}

    def is_reached(self, n: int) -> bool:
        """True if the run ends with batch ``n`` or before; waits for the newest evaluation that can end it there."""
        evaluated = (n + 1 - self._notice) // self._every * self._every
        if evaluated <= 0:
            return False
        if evaluated not in self._decisions:
            self._decisions[evaluated] = self._comm.await_published(_key(evaluated), self._check) == str(True)
        return self._decisions[evaluated]


def _key(batches: int) -> str:
    return f"the decision after {batches} batches"
