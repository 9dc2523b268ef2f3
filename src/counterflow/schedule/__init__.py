"""The programs that blocks run, as data, and their simulation without tensors."""

from counterflow.schedule.plan import Plan
from counterflow.schedule.program import Action, Op, block_program, rank_program
from counterflow.schedule.simulate import DeadlockError, Durations, Timetable, simulate

__all__ = [
    "Action",
    "DeadlockError",
    "Durations",
    "Op",
    "Plan",
    "Timetable",
    "block_program",
    "rank_program",
    "simulate",
]
