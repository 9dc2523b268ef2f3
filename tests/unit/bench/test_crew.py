"""Processes of a measurement: what they return, and what they say when it goes wrong."""

import os
import time

import pytest
import torch

from counterflow.bench.crew import CrewError, Setting, run
from counterflow.transport import Communicator


def where(comm: Communicator, word: str) -> tuple[int, int, str, int]:
    return comm.rank, comm.size, word + "".join(comm.all_gather(word, "words")), torch.get_num_threads()


def fail_in_one(comm: Communicator) -> None:
    if comm.rank == 1:
        raise ArithmeticError("of rank 1")
    time.sleep(60)


def end_in_silence(comm: Communicator) -> None:
    if comm.rank == 0:
        os._exit(3)
    time.sleep(60)


def sleep_on(comm: Communicator) -> None:
    time.sleep(60)


def test_results_in_the_order_of_ranks() -> None:
    assert run(Setting(60), 3, where, "x") == [(rank, 3, "xxxx", 1) for rank in range(3)]


def test_one_process_has_no_group() -> None:
    assert run(Setting(60, threads=2), 1, where, "y") == [(0, 1, "yy", 2)]


@pytest.mark.parametrize(
    ("task", "text"), [(fail_in_one, "ArithmeticError: of rank 1"), (end_in_silence, "rank 0: ended")]
)
def test_a_rank_that_fails_ends_all(task: object, text: str) -> None:
    start = time.monotonic()
    with pytest.raises(CrewError, match=text):
        run(Setting(40), 2, task)  # type: ignore[arg-type]
    assert time.monotonic() - start < 30


def test_a_measurement_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(CrewError, match="rank 0: has not finished in time"):
        run(Setting(4), 1, sleep_on)
