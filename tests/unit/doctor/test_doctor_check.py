"""The table of results, and the time limit of calls."""

import time

import pytest

from counterflow.doctor.check import Check, Status, summary_line, table, with_timeout


def test_table_and_summary_line() -> None:
    checks = [Check("a", Status.OK, "fine"), Check("longer", Status.WARN, "little", "take more")]
    assert table(checks) == "ok    a       fine\nwarn  longer  little -> take more"
    assert summary_line(checks) == "2 checks: 1 ok, 1 warn, 0 fail"
    assert table([]) == ""


@pytest.mark.parametrize(("status", "advice"), [(Status.OK, "do"), (Status.WARN, ""), (Status.FAIL, "")])
def test_advice_only_for_warnings_and_failures(status: Status, advice: str) -> None:
    with pytest.raises(AssertionError):
        Check("a", status, "result", advice)


def test_a_call_that_does_not_return() -> None:
    assert with_timeout(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        with_timeout(5, lambda: 1 // 0)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        with_timeout(0.05, lambda: time.sleep(2))
    assert time.monotonic() - start < 1.5
