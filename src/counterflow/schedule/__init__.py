"""Schedules of blocks and of pipelines, as data, and their simulation without tensors."""

from counterflow.schedule.event_sim import DeadlockError, Durations, Span, Timetable, simulate
from counterflow.schedule.forecast import SCHEDULES, LinkSpec, StageCost, Workload, forecast
from counterflow.schedule.local_schedule import Action, Op, block_program, rank_program
from counterflow.schedule.run_plan import RunPlan
from counterflow.schedule.sim_stats import Forecast

__all__ = [
    "SCHEDULES",
    "Action",
    "DeadlockError",
    "Durations",
    "Forecast",
    "LinkSpec",
    "Op",
    "RunPlan",
    "Span",
    "StageCost",
    "Timetable",
    "Workload",
    "block_program",
    "forecast",
    "rank_program",
    "simulate",
]
