"""Reasons of a plan, in sentences: why this wire, this lag and depth, and this placement."""

from collections.abc import Sequence

from counterflow.planner.local_forecast import LocalRun
from counterflow.planner.search import Candidate, Trial
from counterflow.topology import Stream


def reasons(candidate: Candidate, local: LocalRun, batch: int, wires: Sequence[str]) -> list[str]:
    """Why ``candidate`` is as it is.

    Args:
        candidate: One of a plan.
        local: Options of the run, with the smallest lag and depth that are allowed.
        batch: Samples of a batch.
        wires: Values of ``engine.wire`` that are allowed, the most exact one first.
    """
    trials = [trial for trial in candidate.trials if trial.inner == candidate.inner]
    chosen = next(trial for trial in trials if trial.wire == candidate.wire)
    found = [_wire(chosen, trials, batch, wires), _lag(chosen, local, batch)] if candidate.blocks > 1 else []
    placed = [trial for trial in candidate.trials if trial.wire == candidate.wire]
    return found + ([_inner(candidate, placed, batch)] if candidate.processes > candidate.blocks else [])


def _rate(seconds: float, batch: int) -> str:
    return f"{batch / seconds:,.0f} samples/s"


def _wire(chosen: Trial, trials: Sequence[Trial], batch: int, wires: Sequence[str]) -> str:
    times = f"blocks compute for {1e3 * chosen.computing:.3g} ms a batch, the busiest link carries it in "
    times += f"{1e3 * chosen.sending:.3g} ms"
    others = [trial for trial in trials if trial is not chosen]
    if not others:
        why = "the only one allowed" if len(wires) == 1 else "smaller messages would not be faster"
        return f"engine.wire={chosen.wire}: {times}; {why}"
    rates = ", ".join(f"{_rate(other.seconds_per_batch, batch)} with {other.wire}" for other in others)
    changes = "" if chosen is trials[0] else "; it changes the result, see docs/many_machines.md"
    return f"engine.wire={chosen.wire}: {times}; {_rate(chosen.seconds_per_batch, batch)}, but {rates}{changes}"


def _lag(chosen: Trial, local: LocalRun, batch: int) -> str:
    options = f"engine.lag={chosen.lag} engine.depth={chosen.depth}"
    if (chosen.lag, chosen.depth) == (local.lag, local.depth):
        return f"{options}: the smallest ones allowed, larger ones are not 1 % faster"
    return (
        f"{options}: {_rate(chosen.seconds_per_batch, batch)}, but {_rate(chosen.least, batch)} with "
        f"lag {local.lag} and depth {local.depth}, as messages take longer than that on their way"
    )


def _inner(candidate: Candidate, trials: Sequence[Trial], batch: int) -> str:
    if candidate.nodes == 1:
        return "topology.inner=pipeline: all processes are on one node"
    told = []
    for trial in trials:
        between = trial.crossing
        blocks = between[Stream.ACTIVATION.value] + between[Stream.TARGET.value]
        told.append(
            f"with {trial.inner} {sum(between.values()) / 1e6:.3g} MB a batch cross nodes "
            f"({blocks / 1e6:.3g} between blocks, {between[Stream.SYNC.value] / 1e6:.3g} between copies), "
            f"{_rate(trial.seconds_per_batch, batch)}"
        )
    return f"topology.inner={candidate.inner}: {'; '.join(told)}"
