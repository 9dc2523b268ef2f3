import pytest
import torch

from counterflow.metrics.block_metrics import BlockMetrics, MetricsCallback


class Posts:
    """Reports in the order in which they were sent."""

    def __init__(self) -> None:
        self.records: list[BlockMetrics] = []

    def __call__(self, record: BlockMetrics) -> None:
        self.records.append(record)


def metrics(loss: float = 0.5) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "accuracy": torch.tensor(0.25)}


@pytest.mark.parametrize(
    ("every", "batches", "reported"),
    [
        (1, 4, [0, 1, 2, 3]),
        (3, 8, [0, 3, 6, 7]),
        (3, 7, [0, 3, 6]),  # the last one is not reported twice
        (10, 4, [0, 3]),
        (10, 1, [0]),
    ],
)
def test_every_so_many_batches_and_the_last(every: int, batches: int, reported: list[int]) -> None:
    posts = Posts()
    callback = MetricsCallback(0, every, lambda n: n >= batches - 1, lambda: 0.0, posts)
    for n in range(batches):
        for block in (1, 2):
            callback.on_step(block, n, metrics())
    assert [(record.n, record.block) for record in posts.records] == [(n, block) for n in reported for block in (1, 2)]


def test_every_evaluation_is_reported() -> None:
    posts = Posts()
    callback = MetricsCallback(0, 100, lambda n: n >= 999, lambda: 0.0, posts)
    for n in (7, 8, 9):
        callback.on_eval(2, n, "test", {"accuracy": 0.75})
    assert [(r.event, r.n, r.block, r.metrics) for r in posts.records] == [
        ("test", n, 2, {"accuracy": 0.75}) for n in (7, 8, 9)
    ]


def test_a_block_without_a_prediction_of_its_own_has_no_accuracy() -> None:
    posts = Posts()
    MetricsCallback(0, 100, lambda n: n >= 999, lambda: 0.0, posts).on_eval(2, 7, "validation", {})
    assert [(r.event, r.n, r.block, r.metrics) for r in posts.records] == [("validation", 7, 2, {})]


def test_what_a_record_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank started at 100 s, and has waited for one of the eight seconds since."""
    monkeypatch.setattr("counterflow.metrics.block_metrics.perf_counter", lambda: 108.0)
    posts = Posts()
    callback = MetricsCallback(3, 1, lambda n: n >= 9, lambda: 1.0, posts, start=100.0)
    callback.on_step(5, 4, metrics())
    expected = BlockMetrics("train", 4, 5, 3, {"loss": 0.5, "accuracy": 0.25}, seconds=8.0, waited=0.125)
    assert posts.records == [expected]
    assert BlockMetrics.from_json(posts.records[0].to_json()) == expected


class Device(torch.Tensor):
    """Number that counts how often it leaves its device."""

    read = 0

    def __float__(self) -> float:
        Device.read += 1
        return 0.5


def test_numbers_leave_the_device_only_for_a_report() -> None:
    callback = MetricsCallback(0, 4, lambda n: n >= 99, lambda: 0.0, Posts())
    for n in range(8):
        callback.on_step(1, n, {"loss": torch.tensor(0.5).as_subclass(Device)})
    assert Device.read == 2
