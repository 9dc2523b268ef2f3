"""Programs of blocks and ranks, as data. Their simulation is in `event_sim`, `sim_stats` and `forecast`."""

from counterflow.schedule.local_schedule import Action, Op, block_program, rank_program
from counterflow.schedule.run_plan import RunPlan

__all__ = ["Action", "Op", "RunPlan", "block_program", "rank_program"]
