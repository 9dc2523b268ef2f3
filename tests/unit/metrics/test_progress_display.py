import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from counterflow.metrics.block_metrics import BlockMetrics, StepMetrics
from counterflow.metrics.callback import ProgressDisplay, RunInfo

RANKS = [0, 0, 1]


def train(n: int, seconds: float, loss: float = 0.5) -> StepMetrics:
    records = [
        BlockMetrics("train", n, block, rank, {"loss": loss * block, "accuracy": block / 8}, seconds, rank / 4)
        for block, rank in enumerate(RANKS, 1)
    ]
    return StepMetrics("train", n, records, {"free_energy": 2.5})


def evaluation(n: int) -> StepMetrics:
    return StepMetrics(
        "test", n, [BlockMetrics("test", n, b, r, {"accuracy": b / 4}, 9.0, 0.0) for b, r in enumerate(RANKS, 1)], {}
    )


def console(terminal: bool = False) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, width=120, color_system=None)


@contextmanager
def started(
    to: Console, batches: int, owners: Sequence[int] = RANKS, description: Sequence[str] = ()
) -> Iterator[ProgressDisplay]:
    """Display of a run that has begun, and is closed at the end."""
    display = ProgressDisplay(to)
    try:
        display.on_start(RunInfo(description, batches, 32, owners))
        yield display
    finally:
        display.close()


def text_of(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def table_of(display: ProgressDisplay) -> list[list[str]]:
    """The cells of the table; no cell but the header's has a space."""
    to = console()
    to.print(display.table())
    return [re.split(r"\s{2,}", line.strip()) for line in text_of(to).splitlines()]


HEADER = ["block", "rank", "loss", "accuracy", "test accuracy", "waits"]


def test_table_before_anything_happened() -> None:
    assert table_of(ProgressDisplay(console())) == [HEADER]
    with started(console(), 10) as display:
        assert table_of(display) == [HEADER]


def test_table_before_the_first_evaluation() -> None:
    with started(console(), 10) as display:
        display.on_step(train(3, 2.0))
    assert table_of(display) == [
        HEADER,
        ["1", "0", "0.5000", "0.1250", "-", "0%"],
        ["2", "0", "1.0000", "0.2500", "-", "0%"],
        ["3", "1", "1.5000", "0.3750", "-", "25%"],
    ]


def test_table_has_the_last_of_both() -> None:
    with started(console(), 10) as display:
        display.on_step(train(3, 2.0, loss=7.0))
        display.on_eval(evaluation(3))
        display.on_step(train(6, 3.0))
    assert table_of(display) == [
        HEADER,
        ["1", "0", "0.5000", "0.1250", "0.2500", "0%"],
        ["2", "0", "1.0000", "0.2500", "0.5000", "0%"],
        ["3", "1", "1.5000", "0.3750", "0.7500", "25%"],
    ]


def test_a_figure_that_a_block_does_not_have_is_a_dash() -> None:
    with started(console(), 10, [0]) as display:
        display.on_step(StepMetrics("train", 0, [BlockMetrics("train", 0, 1, 0, {}, 1.0, 0.0)], {}))
    assert table_of(display)[1] == ["1", "0", "-", "-", "-", "0%"]


def test_without_a_terminal_a_line_is_an_evaluation() -> None:
    to = console()
    with started(to, 1000) as display:
        for n in (0, 4, 8):
            display.on_step(train(n, 1.0 + n))
        display.on_eval(evaluation(9))
        display.on_eval(evaluation(999))
    assert text_of(to).splitlines() == [
        "batch 10/1000: test accuracy of blocks, bottom to top: 0.2500 0.5000 0.7500",
        "batch 1000/1000: test accuracy of blocks, bottom to top: 0.2500 0.5000 0.7500",
    ]


def test_text_is_read_by_its_bits_per_byte() -> None:
    to = console()
    metrics = {"accuracy": 0.5, "bits_per_byte": 2.25}
    row = StepMetrics("validation", 9, [BlockMetrics("validation", 9, 1, 0, metrics, 1.0, 0.0)], {})
    with started(to, 1000, [0]) as display:
        display.on_eval(row)
    assert text_of(to) == "batch 10/1000: validation bits per byte of blocks, bottom to top: 2.2500\n"
    assert table_of(display)[0][4] == "validation bits per byte"


def test_a_line_stays_one_line_however_narrow_the_log_is() -> None:
    to = Console(file=StringIO(), width=20)
    with started(to, 1000) as display:
        display.on_eval(evaluation(9))
    assert len(text_of(to).splitlines()) == 1


def plain(text: str) -> str:
    """Without the terminal's control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_progress_and_speed() -> None:
    """32 samples a batch: 4 batches in 2 s, and 4 more in half a second."""
    first, second = console(terminal=True), console(terminal=True)
    for to, rows in ((first, [train(3, 2.0)]), (second, [train(3, 2.0), train(7, 2.5)])):
        with started(to, 10) as display:
            for row in rows:
                display.on_step(row)
    assert re.search(r"^batch +4/10 .* 64 samples/s  free_energy 2\.5000$", plain(text_of(first)), re.MULTILINE)
    assert re.search(r"^batch +8/10 .* 256 samples/s  free_energy 2\.5000$", plain(text_of(second)), re.MULTILINE)


def test_tokens_are_counted_of_text_alone() -> None:
    """Samples of 100 tokens."""
    to = console(terminal=True)
    display = ProgressDisplay(to)
    display.on_start(RunInfo((), 10, 32, RANKS, tokens=100))
    display.on_step(train(3, 2.0))
    text = {"bits_per_byte": 1.5, "validation_bits_per_byte": 1.25, "tokens_per_second": 1234560.0}
    display.on_end({**SUMMARY, **text})
    display.close()
    assert re.search(r"64 samples/s  6,400 tokens/s  free_energy", plain(text_of(to)))
    last = plain(text_of(to)).splitlines()[-1]
    assert "validation bits per byte 1.2500  test bits per byte 1.5000  12,346 samples/s  1,234,560 tokens/s" in last


def test_a_terminal_shows_the_table_instead_of_lines() -> None:
    to = console(terminal=True)
    with started(to, 10) as display:
        display.on_step(train(7, 2.5))
        display.on_eval(evaluation(7))
    text = plain(text_of(to))
    assert "test accuracy  waits" in text
    assert re.search(r"^ +3 +1 +1\.5000 +0\.3750 +0\.7500 +25%$", text, re.MULTILINE)
    assert "bottom to top" not in text


def crash(to: Console) -> None:
    with started(to, 10) as display:
        display.on_step(train(3, 2.0))
        raise ZeroDivisionError


def test_a_terminal_is_given_back_whatever_happens() -> None:
    to = console(terminal=True)
    with pytest.raises(ZeroDivisionError):
        crash(to)
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert text_of(to).count(hidden) == text_of(to).count(shown) == 1


def test_a_quiet_console_stays_quiet() -> None:
    for terminal in (False, True):
        to = Console(file=StringIO(), force_terminal=terminal, quiet=True)
        with started(to, 10) as display:
            display.on_step(train(3, 2.0))
            display.on_eval(evaluation(3))
        assert plain(text_of(to)).strip() == ""


SUMMARY = {
    "validation_accuracy": 0.25,
    "test_accuracy": 0.75,
    "samples_per_second": 12345.6,
    "fingerprint": 4 * "0123456789abcdef",
}


def test_the_setting_comes_first_and_the_result_last(tmp_path: Path) -> None:
    for run_dir, rest in ((tmp_path, f"  {tmp_path / 'summary.json'}"), (None, "")):
        to = Console(file=StringIO(), width=60)
        display = ProgressDisplay(to)
        setting = ("bll, mlp of 5 layers cut [2, 1, 1, 1]", "processes 3")
        display.on_start(RunInfo(setting, 10, 32, RANKS, run_dir=run_dir))
        display.on_step(train(9, 2.0))
        display.on_end(SUMMARY)
        display.close()
        lines = text_of(to).splitlines()
        assert lines[:2] == list(setting)
        accuracies = "validation accuracy 0.2500  test accuracy 0.7500"
        assert lines[-1] == f"{accuracies}  12,346 samples/s  fingerprint 0123456789abcdef{rest}"
        assert "block" in lines[2]


def test_an_accuracy_that_was_not_measured_is_left_out() -> None:
    to = console()
    with started(to, 10) as display:
        display.on_end({**SUMMARY, "validation_accuracy": None})
    assert text_of(to).splitlines()[-1].startswith("test accuracy 0.7500  12,346 samples/s")
