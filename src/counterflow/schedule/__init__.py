"""The programs that blocks run, as data, and their simulation without tensors."""

from counterflow.schedule.clock import DeadlockError, Span, Timetable
from counterflow.schedule.forecast import SCHEDULES, Forecast, forecast
from counterflow.schedule.load import Link, Load, StageTimes
from counterflow.schedule.plan import Plan
from counterflow.schedule.program import Action, Op, block_program, rank_program
from counterflow.schedule.simulate import Durations, simulate

__all__ = [
    "SCHEDULES",
    "Action",
    "DeadlockError",
    "Durations",
    "Forecast",
    "Link",
    "Load",
    "Op",
    "Plan",
    "Span",
    "StageTimes",
    "Timetable",
    "block_program",
    "forecast",
    "rank_program",
    "simulate",
]
