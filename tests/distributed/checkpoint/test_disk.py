"""Full disk: training continues, the last complete checkpoint stays, and a warning is logged."""

import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from counterflow.trainer.job_builder import load_job
from counterflow.trainer.rank0 import open_run_dir
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, configuration, summary_of, train_rank

OPTIONS = (
    "model.width=64",
    "blocks=4",
    "train.evaluate_every=0",
    "train.steps=12",
    "checkpoint.every=4",
    "checkpoint.keep=9",
)


def limited(rank: int, size: int, store_path: str, folder: Path, most: int) -> object:
    """A run that may write files of at most ``most`` bytes, a limit of the kernel."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        return train_rank(rank, size, store_path, configuration(*SMALL, *OPTIONS), 0.0, 0, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_outlives_a_disk_without_room(pool: Pool, tmp_path: Path) -> None:
    expected = summary_of(pool, 2, *OPTIONS, directory=tmp_path / "whole")["fingerprint"]
    sizes = [path.stat().st_size for path in (tmp_path / "whole").glob("checkpoints/*/*.pt")]
    run = tmp_path / "run"
    summary = pool.run(2, limited, run, (min(sizes) + max(sizes)) // 2)[0]
    assert summary["fingerprint"] == expected
    assert not list(run.glob("checkpoints/*/manifest.json"))
    assert not list(run.glob("checkpoints/*/*.part"))
    assert list(run.glob("checkpoints/*/*.pt")), "smaller blocks have been written"


@pytest.mark.parametrize("path", ["/sys/counterflow", "/proc/counterflow", "/dev/null/run"])
def test_a_folder_that_cannot_be_written(path: str) -> None:
    config = configuration(*SMALL, *OPTIONS)
    config = replace(config, run=replace(config.run, dir=path))
    with pytest.raises(ValueError, match=f"^run.dir={path}: must be a folder that can be written [^\n]+$"):
        open_run_dir(load_job(config), config, lambda text: None)


def test_a_file_in_the_place_of_the_checkpoints(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    assert summary_of(pool, 2, *OPTIONS, directory=tmp_path / "run")["steps"] == 12
    assert (tmp_path / "run" / "checkpoints").read_text() == "in the way"
