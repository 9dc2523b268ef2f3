"""The programs that blocks run, as data, and their simulation without tensors."""

from counterflow.schedule.clock import DeadlockError, Span, Timetable
from counterflow.schedule.forecast import SCHEDULES, Forecast, forecast
from counterflow.schedule.load import Link, Load, StageTimes
from counterflow.schedule.local_schedule import Action, Op, block_program, rank_program
from counterflow.schedule.run_plan import RunPlan
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
    "RunPlan",
    "Span",
    "StageTimes",
    "Timetable",
    "block_program",
    "forecast",
    "rank_program",
    "simulate",
]
