"""The device of a process and what carries its messages, by the GPUs that are there."""

import pytest
import torch

from counterflow.rank_info import RankInfo
from counterflow.trainer.job_builder import _device
from tests.helpers.configs import configured


def chosen(
    monkeypatch: pytest.MonkeyPatch, gpus: int, *overrides: str, rank: int = 0, ranks: int = 1, schedule: str = "free"
) -> tuple[str, str]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    device, backend = _device(configured(*overrides), schedule, RankInfo(rank, ranks, rank, ranks))
    return str(device), backend


def test_each_rank_has_a_gpu_and_nccl_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [chosen(monkeypatch, 2, rank=rank, ranks=2) for rank in (0, 1)] == [("cuda:0", "nccl"), ("cuda:1", "nccl")]


def test_ranks_share_gpus_over_gloo_where_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [chosen(monkeypatch, 2, rank=rank, ranks=4) for rank in range(4)]
    assert found == [("cuda:0", "gloo"), ("cuda:1", "gloo"), ("cuda:0", "gloo"), ("cuda:1", "gloo")]


def test_what_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, 2, "engine.backend=gloo", ranks=2) == ("cuda:0", "gloo")
    assert chosen(monkeypatch, 2, "device=cpu", ranks=2) == ("cpu", "gloo")
    assert chosen(monkeypatch, 0) == ("cpu", "gloo")
    assert chosen(monkeypatch, 2, "engine.recovery=rank", rank=1, ranks=2) == ("cuda:1", "gloo")


@pytest.mark.parametrize(
    ("gpus", "ranks", "schedule", "overrides", "message"),
    [
        (0, 1, "free", ("device=cuda",), "device=cuda: no CUDA device is available, allowed here are auto, cpu"),
        (0, 1, "free", ("engine.backend=nccl",), "engine.backend=nccl: needs device=cuda"),
        (1, 2, "free", ("engine.backend=nccl",), "engine.backend=nccl: 2 ranks on 1 devices"),
        (2, 2, "free", ("engine.backend=nccl", "engine.recovery=rank"), "engine.backend=nccl: allowed for engine.rec"),
        (1, 2, "1f1b", (), "schedule=1f1b: torch's schedules move CUDA tensors over nccl only"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, gpus: int, ranks: int, schedule: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + message) as refusal:
        chosen(monkeypatch, gpus, *overrides, ranks=ranks, schedule=schedule)
    assert "\n" not in str(refusal.value)
