"""Programs of blocks and ranks, as data. Their simulation is in `event_sim` and `forecast`."""

from counterflow.schedule.local_schedule import Action, Op, RunPlan, rank_program

__all__ = ["Action", "Op", "RunPlan", "rank_program"]
