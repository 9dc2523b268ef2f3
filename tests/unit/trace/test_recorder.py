import pytest

from counterflow.trace.recorder import DTYPE, NAMES, Recorder, span

StepMetrics = tuple[str, int, int, int, float, float]


def rows(recorder: Recorder) -> list[StepMetrics]:
    return [(NAMES[name], *others) for name, *others in recorder.spans().tolist()]


def test_spans_come_by_their_start_with_those_that_hold_others_first() -> None:
    recorder = Recorder()
    recorder.add("receive", 3, 7, 1.0, 1.5)
    recorder.add("send", 3, 7, 2.0, 2.25)
    recorder.add("forward", 3, 7, 1.0, 2.5)
    recorder.add("evaluate", 3, 7, 3.0, 4.0, 2)
    assert rows(recorder) == [
        ("forward", 3, 7, -1, 1.0, 2.5),
        ("receive", 3, 7, -1, 1.0, 1.5),
        ("send", 3, 7, -1, 2.0, 2.25),
        ("evaluate", 3, 7, 2, 3.0, 4.0),
    ]


def test_a_span_takes_32_bytes() -> None:
    assert DTYPE.itemsize == 32


def test_spans_may_be_added_after_a_look_at_them() -> None:
    recorder = Recorder()
    assert rows(recorder) == []
    recorder.add("forward", 1, 0, 0.0, 1.0)
    before = recorder.spans()
    recorder.add("forward", 1, 1, 1.0, 2.0)
    assert (len(before), len(recorder.spans())) == (1, 2)


def test_what_no_span_covers_is_the_rest() -> None:
    recorder = Recorder()
    recorder.add("forward", 2, 5, 0.0, 1.0)
    recorder.add("backward", 2, 5, 2.0, 3.0)
    recorder.add("backward", 2, 5, 3.0 + 1e-6, 3.25)
    recorder.add("update", 2, 5, 3.5, 4.0)
    recorder.rest("loss", 2, 5, 1.0, 6.0)
    assert rows(recorder) == [
        ("forward", 2, 5, -1, 0.0, 1.0),
        ("loss", 2, 5, -1, 1.0, 2.0),
        ("backward", 2, 5, -1, 2.0, 3.0),
        ("backward", 2, 5, -1, 3.0 + 1e-6, 3.25),
        ("loss", 2, 5, -1, 3.25, 3.5),
        ("update", 2, 5, -1, 3.5, 4.0),
        ("loss", 2, 5, -1, 4.0, 6.0),
    ]


def test_the_rest_of_nothing_is_all() -> None:
    recorder = Recorder()
    recorder.rest("loss", 1, 0, 1.0, 2.0)
    assert rows(recorder) == [("loss", 1, 0, -1, 1.0, 2.0)]


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError):
        Recorder().add("coffee", 1, 0, 0.0, 1.0)


def test_a_span_is_the_time_within_it() -> None:
    recorder = Recorder()
    with span(recorder, "evaluate", 4, 9, 1), span(recorder, "receive", 4, 9, 1):
        pass
    outer, inner = rows(recorder)
    assert outer[:4] == ("evaluate", 4, 9, 1)
    assert inner[:4] == ("receive", 4, 9, 1)
    assert outer[4] <= inner[4] <= inner[5] <= outer[5]
    with span(None, "evaluate", 4, 9):
        pass
