"""Small runs of random shape: none hangs, and none differs from the same run on one process."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of


@dataclass(frozen=True)
class Shape:
    blocks: int
    ranks: int
    lag: int
    depth: int
    room: int
    """For targets, beyond lag."""
    steps: int
    batch_size: int
    evaluate_every: int
    validation: float
    refresh: int
    delays: float
    seed: int

    @property
    def overrides(self) -> tuple[str, ...]:
        return (
            "model.width=8",
            "model.hidden=5",
            "model.dropout=0.1",
            "model.norm=batch",
            f"blocks={self.blocks}",
            f"seed={self.seed}",
            f"engine.lag={self.lag}",
            f"engine.depth={self.depth}",
            f"engine.target_depth={self.lag + self.room}",
            f"train.steps={self.steps}",
            f"train.batch_size={self.batch_size}",
            f"train.evaluate_every={self.evaluate_every}",
            f"data.validation={self.validation}",
            f"algorithm.feedback.refresh={self.refresh}",
        )


@st.composite
def shapes(draw: st.DrawFn, smallest: int) -> Shape:
    """A run whose batches have ``smallest`` samples or more."""
    blocks = draw(st.integers(1, 6))
    return Shape(
        blocks=blocks,
        ranks=draw(st.integers(1, blocks)),
        lag=draw(st.integers(1, 4)),
        depth=draw(st.integers(1, 4)),
        room=draw(st.integers(0, 2)),
        steps=draw(st.integers(1, 10)),
        batch_size=draw(st.sampled_from([smallest, 100, 359, 1293])),
        evaluate_every=draw(st.integers(0, 3)) if draw(st.booleans()) else 0,
        validation=draw(st.sampled_from([0.0, 0.1])),
        refresh=draw(st.integers(1, 3)),
        delays=draw(st.sampled_from([0.0, 0.0, 0.01])),
        seed=draw(st.integers(0, 99)),
    )


def check(pool: Pool, shape: Shape) -> None:
    alone = summary_of(pool, 1, *shape.overrides)
    together = summary_of(pool, shape.ranks, *shape.overrides, delays=shape.delays, seed=shape.seed)
    for key in ("fingerprint", "block_accuracy"):
        assert together[key] == alone[key]


OPTIONS = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@settings(OPTIONS, max_examples=6)
@given(shape=shapes(16))  # two in a batch make 180 batches of an evaluation
def test_random_runs(pool: Pool, shape: Shape) -> None:
    check(pool, shape)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(OPTIONS, max_examples=100)
@given(shape=shapes(2))
def test_a_hundred_random_runs(pool: Pool, shape: Shape) -> None:
    check(pool, shape)
