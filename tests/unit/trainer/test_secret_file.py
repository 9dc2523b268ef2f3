"""A secret that would guard nothing, or is none, is refused before ranks meet and before there is a folder."""

from pathlib import Path
from typing import cast

import pytest

from counterflow.engine.job import Job
from counterflow.rank_info import RankInfo
from counterflow.trainer.fit import ProcessControl, connect_and_fit
from tests.helpers.configs import configured


def fit(file: Path, info: RankInfo) -> None:
    config = configured("engine.recovery=rank", f"engine.secret_file={file}")
    connect_and_fit(cast(Job, None), config, info, [], ProcessControl())


def test_a_program_whose_ranks_nothing_replaces_has_no_sockets_to_guard(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^engine\.secret_file=\S+: guards the sockets of engine\.recovery=rank, which is for programs of the "
        r"command line; allowed here is None$",
    ):
        fit(tmp_path / "secret", RankInfo(0, 2, 0, 2))


def test_a_wrong_file_is_refused_on_one_process_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^engine\.secret_file=\S+: cannot be read \(No such file or directory\); "):
        fit(tmp_path / "secret", RankInfo())


def test_a_secret_does_not_print_itself() -> None:
    assert "hidden" not in repr(ProcessControl(secret=b"hidden"))
