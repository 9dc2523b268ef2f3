"""Rules on the number of micro-batches, in one place for runs, plans and forecasts."""

import pytest

from counterflow.schedule.pipeline_schedules import check_microbatches, microbatch_counts, microbatch_error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpipe", 2, 2, 3, 32), "train.microbatches=3: must divide train.batch_size=32"),
        (("1f1b", 4, 4, 2, 32), "train.microbatches=2: schedule=1f1b needs at least one for each of ranks=4"),
        (("zbh1", 4, 4, 2), "train.microbatches=2: schedule=zbh1 needs at least one for each of ranks=4"),
        (
            ("interleaved1f1b", 2, 2, 4, 32),
            "schedule=interleaved1f1b: blocks=2 must be a multiple of ranks=2, and more; "
            "train.microbatches=4 must be a multiple of ranks",
        ),
        (
            ("zbv", 2, 4, 2, 32),
            "schedule=zbv: blocks=4 must be 4, two for each rank; train.microbatches=2 must be at least 4",
        ),
    ],
)
def test_a_refusal_names_key_value_and_what_is_allowed(arguments: tuple[str, int, int, int], message: str) -> None:
    assert microbatch_error(*arguments) == message
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        check_microbatches(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("schedule", "ranks", "blocks", "counts"),
    [
        ("gpipe", 4, 4, [1, 2, 3, 4, 6, 8, 12, 24]),
        ("1f1b", 4, 4, [4, 6, 8, 12, 24]),
        ("zbh1", 3, 3, [3, 4, 6, 8, 12, 24]),
        ("interleaved1f1b", 3, 6, [3, 6, 12, 24]),
        ("interleaved1f1b", 3, 3, []),
        ("zbv", 3, 6, [6, 8, 12, 24]),
        ("zbv", 3, 5, []),
    ],
)
def test_counts_of_a_batch_of_24_by_hand(schedule: str, ranks: int, blocks: int, counts: list[int]) -> None:
    assert microbatch_counts(schedule, ranks, blocks, 24) == counts


def test_one_process_has_no_micro_batches() -> None:
    check_microbatches("1f1b", 1, 3, 5, 32)
