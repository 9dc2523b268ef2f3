"""The weights of the best evaluation stay, whatever the order in which scores and files come."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from counterflow.checkpoint import BestWeights, BlockWritten, CheckpointDirectory
from counterflow.checkpoint.directory import block_file

SCORES = {4: 0.5, 8: 0.75, 12: 0.25, 16: 0.75, 20: 0.625}
BLOCKS = (1, 2, 3)


def write(path: Path, batches: int, block: int) -> BlockWritten:
    file = block_file(CheckpointDirectory(path).folder(batches), block)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"{block}.weight": torch.full((2,), batches + block / 10)}, file)
    return BlockWritten(batches, block, file.stat().st_size, "", evaluated=True)


def folders(path: Path) -> list[int]:
    return [batches for batches, _ in CheckpointDirectory(path).folders()]


def deliver(best: BestWeights, events: list[Any]) -> None:
    for event in events:
        if isinstance(event, BlockWritten):
            best.add_written(event)
        else:
            best.add_score(*event)


@pytest.mark.parametrize("seed", range(20))
def test_the_first_of_the_highest_in_any_order(tmp_path: Path, seed: int) -> None:
    events: list[Any] = [*SCORES.items(), *(write(tmp_path, batches, block) for batches in SCORES for block in BLOCKS)]
    random.Random(seed).shuffle(events)
    best = BestWeights(CheckpointDirectory(tmp_path), len(BLOCKS), 0, {})
    deliver(best, events)
    assert (best.score, best.batches) == (0.75, 8)
    assert folders(tmp_path) == [8]
    state = best.load()
    assert {name: value[0].item() for name, value in state.items()} == pytest.approx(
        {f"{block}.weight": 8 + block / 10 for block in BLOCKS}
    )
    best.remove()
    assert not tmp_path.exists()


@pytest.mark.parametrize("start", [0, 3, 4, 10, 16, 20])
@pytest.mark.parametrize("seed", range(3))
def test_restarted_anywhere_the_choice_is_the_same(tmp_path: Path, start: int, seed: int) -> None:
    """The files before the checkpoint are there, judged or not; those after it may be, too, and come again."""
    draw = random.Random(seed)
    first: list[Any] = []
    for batches, score in SCORES.items():
        if batches <= start + 4:
            first += [write(tmp_path, batches, block) for block in BLOCKS]
            first += [(batches, score)]
    before = BestWeights(CheckpointDirectory(tmp_path), len(BLOCKS), 0, {})
    deliver(before, first[: draw.randrange(len(first) + 1)])
    scores = {batches: score for batches, score in SCORES.items() if batches <= start}
    again = BestWeights(CheckpointDirectory(tmp_path), len(BLOCKS), start, scores)
    for batches in (batches for batches in SCORES if batches > start):
        deliver(again, [*(write(tmp_path, batches, block) for block in BLOCKS), (batches, SCORES[batches])])
    assert (again.score, again.batches) == (0.75, 8)
    assert folders(tmp_path) == [8]


def test_a_rank_that_takes_the_place_of_another_writes_again(tmp_path: Path) -> None:
    best = BestWeights(CheckpointDirectory(tmp_path), len(BLOCKS), 0, {})
    for batches, score in SCORES.items():
        deliver(best, [*(write(tmp_path, batches, block) for block in BLOCKS), (batches, score)])
    for batches in SCORES:
        best.add_written(write(tmp_path, batches, 2))
    assert best.batches == 8
    assert folders(tmp_path) == [8]


def test_an_evaluation_that_is_not_whole_on_the_disk_does_not_count(tmp_path: Path) -> None:
    best = BestWeights(CheckpointDirectory(tmp_path), len(BLOCKS), 0, {})
    for batches, score in SCORES.items():
        written = [write(tmp_path, batches, block) for block in BLOCKS]
        if score == 0.75:
            written[1] = BlockWritten(batches, 2, 0, "", "No space left on device", evaluated=True)
        deliver(best, [*written, (batches, score)])
    assert (best.score, best.batches) == (0.625, 20)
    assert folders(tmp_path) == [20]
