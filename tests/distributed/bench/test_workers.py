"""Worker processes: their results, and their errors."""

import os
import time

import pytest
import torch

from counterflow.bench.workers import WorkerError, WorkerSettings, run_workers
from counterflow.transport import Communicator


def describe(comm: Communicator, word: str) -> tuple[int, int, str, int]:
    return comm.rank, comm.size, word + "".join(comm.all_gather(word, "words")), torch.get_num_threads()


def fail_in_one(comm: Communicator) -> None:
    if comm.rank == 1:
        raise ArithmeticError("of rank 1")
    time.sleep(60)


def exit_without_error(comm: Communicator) -> None:
    if comm.rank == 0:
        os._exit(3)
    time.sleep(60)


def sleep_long(comm: Communicator) -> None:
    time.sleep(60)


def test_results_in_the_order_of_ranks() -> None:
    assert run_workers(WorkerSettings(60), 3, describe, "x") == [(rank, 3, "xxxx", 1) for rank in range(3)]


def test_one_process_has_no_group() -> None:
    assert run_workers(WorkerSettings(60), 1, describe, "y") == [(0, 1, "yy", 1)]


@pytest.mark.parametrize(
    ("task", "text"), [(fail_in_one, "ArithmeticError: of rank 1"), (exit_without_error, "rank 0: ended")]
)
def test_a_rank_that_fails_ends_all(task: object, text: str) -> None:
    start = time.monotonic()
    with pytest.raises(WorkerError, match=text):
        run_workers(WorkerSettings(40), 2, task)  # type: ignore[arg-type]
    assert time.monotonic() - start < 30


def test_a_measurement_that_takes_too_long_fails() -> None:
    with pytest.raises(WorkerError, match="rank 0: has not finished in time"):
        run_workers(WorkerSettings(4), 1, sleep_long)
