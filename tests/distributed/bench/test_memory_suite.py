"""Memory measurements of real runs, compared with sums by hand, and the results of the suite ``memory``."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from counterflow.bench.case import BenchmarkCase
from counterflow.bench.cases import CaseFactory
from counterflow.bench.memory_tracker import MemoryMeasurement, train_tracked
from counterflow.bench.options import BenchContext, BenchOptions
from counterflow.bench.results import SuiteResult
from counterflow.bench.training_suites import draw_memory, measure_memory
from counterflow.bench.workers import WorkerSettings, run_workers

BATCH, PIXELS, WIDTH = 32, 4, 24
INPUTS = BATCH * PIXELS * PIXELS * 4
HIDDEN = BATCH * WIDTH * 4
"""Bytes of one activation of all samples: the output of a ReLU and the input of the next layer."""
LABELS = BATCH * 8
LOGARITHMS = BATCH * 10 * 4
"""Bytes of log-softmax."""
WEIGHT = 4
"""The total weight of the samples of a loss."""


def mlp_case(folder: Path, ranks: int, blocks: int, batches: int, options: Sequence[str]) -> BenchmarkCase:
    """Blocks of two linear layers with a ReLU behind each; the top one ends in the output layer."""
    cases = CaseFactory(folder)
    cases.write_images(2 * BATCH, PIXELS, 1)
    network = ["model=mlp", "model.norm=none", f"model.width={WIDTH}", f"model.hidden={2 * blocks}"]
    cut = [2] * (blocks - 1) + [3]
    return cases.training("mlp", ranks, batches, 1, BATCH, [*network, f"model.cut={cut}", f"blocks={blocks}", *options])


def measured(case: BenchmarkCase) -> list[MemoryMeasurement]:
    return run_workers(WorkerSettings(timeout=60), case.ranks, train_tracked, case)


def test_backprop_on_one_process(tmp_path: Path) -> None:
    (rank,) = measured(mlp_case(tmp_path, 1, 2, 3, ["algorithm=bp", "train.microbatches=1"]))
    assert rank.saved == INPUTS + 4 * HIDDEN + LOGARITHMS + LABELS + WEIGHT
    assert rank.messages == 0
    assert rank.all == rank.saved


@pytest.mark.parametrize(("schedule", "bottom", "top"), [("1f1b", 2, 1), ("gpipe", 4, 4)])
def test_a_pipeline_of_two_stages(tmp_path: Path, schedule: str, bottom: int, top: int) -> None:
    """Micro-batches of four whose gradients are pending; inputs and labels of all four are one tensor."""
    options = ["algorithm=bp", f"schedule={schedule}", "train.microbatches=4"]
    lower, upper = measured(mlp_case(tmp_path, 2, 2, 3, options))
    assert lower.saved == INPUTS + bottom * 2 * HIDDEN // 4
    assert upper.saved == LABELS + top * ((3 * HIDDEN + LOGARITHMS) // 4 + WEIGHT)
    assert lower.messages >= HIDDEN // 4
    assert lower.all >= lower.saved


def test_local_rules(tmp_path: Path) -> None:
    """A block holds one batch, however many blocks are above, and rings of three receive and two send buffers."""
    two, three = (measured(mlp_case(tmp_path, n, n, 12, ["algorithm=bll"])) for n in (2, 3))
    assert two[0].saved == three[0].saved
    header, book, labels = 64, 10 * WIDTH * 4, 64  # a byte a label, on a boundary of 64 bytes
    activation, target = header + 2 * HIDDEN, header + book + labels  # with the latent u, as wide as a
    assert two[0].messages == three[0].messages == 2 * activation + 3 * target
    assert three[1].messages == 5 * activation + 5 * target
    assert two[0].all == two[0].saved + two[0].messages
    assert three[1].all < three[1].saved + three[1].messages  # its input is a receive buffer


def test_stashed_weights(tmp_path: Path) -> None:
    """Three batches are in flight at the bottom, of three versions of the weights; the top block has only its own."""
    options = ["algorithm=bp", "schedule=pipedream", "engine.lag=1"]
    bottom, middle, top = measured(mlp_case(tmp_path, 3, 3, 12, options))
    assert bottom.saved == 3 * (INPUTS + 2 * HIDDEN)
    assert middle.saved == 2 * 3 * HIDDEN
    assert top.saved == 3 * HIDDEN + LOGARITHMS + LABELS + WEIGHT
    square = (WIDTH + 1) * WIDTH * 4
    assert bottom.stashes == 3 * ((PIXELS * PIXELS + 1) * WIDTH * 4 + square)
    assert middle.stashes == 2 * 2 * square
    assert top.stashes == 0
    assert max(bottom.saved, bottom.stashes, bottom.messages) < bottom.all
    assert bottom.all <= bottom.saved + bottom.stashes + bottom.messages


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SuiteResult:
    options = BenchOptions(suite="memory", ranks=[1, 2], microbatches=2)
    folder = tmp_path_factory.mktemp("memory")
    return measure_memory(BenchContext(options, CaseFactory(folder), folder, lambda text: None))


@pytest.mark.slow
def test_results_of_both_comparisons(result: SuiteResult) -> None:
    by_name = {(row.extra["comparison"], row.extra["blocks"], row.name): row for row in result.cases}
    assert len(by_name) == len(result.cases) == 2 * (3 + 7) + 1
    message = by_name["equal message", 2, "1F1B m=2"]
    update = by_name["equal update", 2, "1F1B m=2"]
    assert (message.batch, by_name["equal message", 2, "BLL"].batch) == (32, 16)
    assert update.batch == by_name["equal update", 2, "BLL"].batch
    assert message.extra["saved_over_bll"] == pytest.approx(1.84, abs=0.05)  # two batches and no latent head
    assert update.extra["saved_over_bll"] == pytest.approx(0.92, abs=0.05)
    (flat,) = result.goals
    assert flat.at_most
    assert 0 < flat.reached < 0.1


@pytest.mark.slow
def test_the_chart_is_drawn_from_the_json(result: SuiteResult, tmp_path: Path) -> None:
    draw_memory(result.to_json(), tmp_path)
    assert (tmp_path / "memory.png").stat().st_size > 10_000
