"""How many threads one process computes with."""

import os


def intra_op_threads(setting: int | str, blocks: int) -> int:
    """``engine.threads``: ``auto`` is cores / blocks, at least 1.

    A function of the machine and of N, never of P, because kernels round differently with another number of threads.
    What a launcher puts into OMP_NUM_THREADS does not count, for the same reason.
    """
    if isinstance(setting, int):
        return setting
    return max(1, len(os.sched_getaffinity(0)) // blocks)
