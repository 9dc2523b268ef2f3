"""What real runs are said to hold, against sums by hand; and what the suite makes of it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from counterflow.bench.accounts import Held, account
from counterflow.bench.brief import Brief
from counterflow.bench.contender import Contender
from counterflow.bench.crew import Setting, run
from counterflow.bench.entrants import awake, noise
from counterflow.bench.options import BenchOptions
from counterflow.bench.row import Result
from counterflow.bench.suites import memory
from tests.helpers.processes import CONF

BATCH, PIXELS, WIDTH = 32, 4, 24
INPUTS = BATCH * PIXELS * PIXELS * 4
HIDDEN = BATCH * WIDTH * 4
"""Bytes of an activation of all samples: what a ReLU gave, and the next layer takes."""
LABELS = BATCH * 8
LOGARITHMS = BATCH * 10 * 4
"""Of softmax."""
WEIGHT = 4
"""The weight of all samples of a loss."""


def contender(folder: Path, ranks: int, blocks: int, batches: int, options: Sequence[str]) -> Contender:
    """Blocks of two linear layers with a ReLU behind each; the top one ends in the output layer."""
    noise(folder, 2 * BATCH, PIXELS, 1)
    network = ["model=mlp", "model.norm=none", f"model.width={WIDTH}", f"model.hidden={2 * blocks}"]
    cut = [2] * (blocks - 1) + [3]
    return awake(
        CONF, folder, "it", ranks, batches, 1, BATCH, [*network, f"model.cut={cut}", f"blocks={blocks}", *options]
    )


def held(contender: Contender) -> list[Held]:
    return run(Setting(timeout=60), contender.ranks, account, contender)


def test_backprop_on_one_process(tmp_path: Path) -> None:
    (found,) = held(contender(tmp_path, 1, 2, 3, ["algorithm=bp", "train.microbatches=1"]))
    assert found.saved == INPUTS + 4 * HIDDEN + LOGARITHMS + LABELS + WEIGHT
    assert found.messages == 0
    assert found.all == found.saved


@pytest.mark.parametrize(("schedule", "bottom", "top"), [("1f1b", 2, 1), ("gpipe", 4, 4)])
def test_a_pipeline_of_two_stages(tmp_path: Path, schedule: str, bottom: int, top: int) -> None:
    """Of four micro-batches, those whose gradients have not come; inputs and labels of all lie in one piece."""
    options = ["algorithm=bp", f"schedule={schedule}", "train.microbatches=4"]
    lower, upper = held(contender(tmp_path, 2, 2, 3, options))
    assert lower.saved == INPUTS + bottom * 2 * HIDDEN // 4
    assert upper.saved == LABELS + top * ((3 * HIDDEN + LOGARITHMS) // 4 + WEIGHT)
    assert lower.messages >= HIDDEN // 4
    assert lower.all >= lower.saved


def test_blocks_that_learn_locally(tmp_path: Path) -> None:
    """A block holds one batch, whatever is above it; and rings of buffers, three to receive into and two to send."""
    two, three = (held(contender(tmp_path, n, n, 12, ["algorithm=bll"])) for n in (2, 3))
    assert two[0].saved == three[0].saved
    header, book = 64, 10 * WIDTH * 4
    activation, target = header + 2 * HIDDEN, header + book + LABELS  # with u, which is as wide as a
    assert two[0].messages == three[0].messages == 2 * activation + 3 * target
    assert three[1].messages == 5 * activation + 5 * target
    assert two[0].all == two[0].saved + two[0].messages
    assert three[1].all < three[1].saved + three[1].messages  # its input lies in a buffer


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    options = BenchOptions(suite="memory", ranks=[1, 2], microbatches=2)
    folder = tmp_path_factory.mktemp("memory")
    return memory.measure(Brief(options, CONF, folder, folder, lambda text: None))


@pytest.mark.slow
def test_rows_of_both_comparisons(result: Result) -> None:
    by_name = {(row.more["comparison"], row.more["blocks"], row.name): row for row in result.rows}
    assert len(by_name) == len(result.rows) == 2 * (2 + 5)
    message = by_name["equal message", 2, "1F1B m=2"]
    update = by_name["equal update", 2, "1F1B m=2"]
    assert (message.batch, by_name["equal message", 2, "BLL"].batch) == (32, 16)
    assert update.batch == by_name["equal update", 2, "BLL"].batch
    assert message.more["saved_over_bll"] == pytest.approx(1.84, abs=0.05)  # two batches and no latent head
    assert update.more["saved_over_bll"] == pytest.approx(0.92, abs=0.05)
    (flat,) = result.goals
    assert flat.at_most
    assert 0 < flat.reached < 0.1


@pytest.mark.slow
def test_the_figure_is_drawn_from_the_note(result: Result, tmp_path: Path) -> None:
    memory.draw(result.note(), tmp_path)
    assert (tmp_path / "memory.png").stat().st_size > 10_000
