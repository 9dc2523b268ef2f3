"""Exit status of ``counterflow train --ranks N`` by those of its ranks."""

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from counterflow.cli.launch import main


@pytest.mark.parametrize(
    ("ranks", "status"),
    [
        ([143, 2], 2),  # rank 0 had refused the configuration too, but the agent was faster than its exit
        ([2, 143], 2),
        ([-9, 1], 1),
        ([-9, 143], 1),
        ([143, 143], 143),
    ],
)
def test_a_status_of_a_ranks_own_comes_first(ranks: list[int], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = {rank: ProcessFailure(rank, 1, code, "no file") for rank, code in enumerate(ranks)}

    def fails(*_: object) -> None:
        raise ChildFailedError("train", failures)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: fails)
    assert main(["--ranks", "2"]) == status
