"""``train.patience``: a run that ends early is one of so many batches, on any number of processes and over restarts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import counterflow as cf
from tests.distributed.trainer.test_trainer import data, network
from tests.helpers.processes import Pool
from tests.helpers.ranks import on_ranks

RULES: dict[str, Any] = {"bll": cf.BLL, "al": lambda: cf.AL(dim=12), "predsim": cf.PredSim, "bp": cf.Backprop}
RATES = {"bll": 0.3, "al": 0.1, "predsim": 0.3, "bp": 1.0}
"""So large that accuracies fall before the end."""
BLOCKS, LAG, DEPTH, STEPS = 3, 2, 2, 60
NOTICE = {rule: (0 if rule == "al" else LAG * (BLOCKS - 1)) + max(LAG, DEPTH) + 2 for rule in RULES}
"""Batches between the evaluation that decides and the end: no targets leave ahead in associated learning."""


def fit(rule: str, run: str = "", patience: int = 0, steps: int = STEPS, every: int = 3) -> dict[str, Any]:
    """Summary of a small fit."""
    trainer = cf.Trainer(
        network,
        rule=RULES[rule](),
        optimizer=cf.AdamW(lr=RATES[rule], schedule="constant", average=0.5),
        blocks=BLOCKS,
        engine=cf.EngineConfig(threads=1, timeout=30, lag=LAG, depth=DEPTH),
    )
    files: dict[str, Any] = {}
    if run:
        files = {"run_dir": run, "checkpoint": cf.CheckpointConfig(every=5, keep=99, best=True)}
    result = trainer.fit(
        data(),
        data(40),
        epochs=50,
        steps=steps,
        batch_size=16,
        validation=0.4,
        evaluate_every=every,
        patience=patience,
        log_every=4,
        **files,
    )
    return dict(result.summary)


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics, without the times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "wait_fraction")} for row in found]


def last_batches(run: Path, rule: str, patience: int, every: int) -> int:
    """Batches of a run with this patience, as the metrics of one without it say."""
    scores = {row["n"] + 1: row["accuracy"][-1] for row in rows(run) if row["event"] == "validation"}
    for end in range(every, STEPS, every):
        so_far = [scores[batches] for batches in range(every, end + 1, every)]
        if len(so_far) - 1 - so_far.index(max(so_far)) >= patience:
            return end + NOTICE[rule]
    raise AssertionError("accuracies grow to the end")


RESULTS = ("fingerprint", "steps", "test_accuracy", "block_accuracy", "validation_accuracy", "exits")
SELDOM, ALWAYS = (3, 2), (1, 5)
"""Batches between evaluations, and the patience. Where every batch is evaluated, several decisions are under way."""
CASES = [
    *[("bll", 1, SELDOM), ("bll", 2, SELDOM), ("bll", 3, SELDOM), ("bll", 3, ALWAYS)],
    *[("al", 1, SELDOM), ("al", 3, ALWAYS), ("predsim", 3, SELDOM)],
    *[("bp", 1, SELDOM), ("bp", 2, ALWAYS), ("bp", 3, SELDOM)],
]


@pytest.mark.parametrize(("rule", "ranks", "how"), CASES)
def test_it_is_a_run_of_so_many_batches(
    pool: Pool, tmp_path: Path, rule: str, ranks: int, how: tuple[int, int]
) -> None:
    """Messages, evaluations and the last one's test data are those of ``steps=N`` without patience."""
    every, patience = how
    alone = ranks if rule == "bp" else 1  # the parts of a batch are added up differently on several
    on_ranks(pool, alone, fit, rule, str(tmp_path / "whole"), 0, STEPS, every)
    steps = last_batches(tmp_path / "whole", rule, patience, every)
    assert steps < STEPS
    expected = on_ranks(pool, alone, fit, rule, str(tmp_path / "short"), 0, steps, every)[0]
    found = on_ranks(pool, ranks, fit, rule, str(tmp_path / "early"), patience, STEPS, every)
    assert [{key: summary[key] for key in RESULTS} for summary in found] == [{k: expected[k] for k in RESULTS}] * ranks
    assert found[0]["steps"] == steps
    assert rows(tmp_path / "early") == rows(tmp_path / "short")
    assert found[0]["samples_per_second"] > 0


@pytest.mark.parametrize("after", ["first", "middle", "last"])
def test_a_run_that_goes_on_ends_with_the_same_batch(pool: Pool, tmp_path: Path, after: str) -> None:
    """It was interrupted after a checkpoint: before the evaluation that decides, or between it and the end."""
    whole = on_ranks(pool, 3, fit, "bll", str(tmp_path / "whole"), 2)[0]
    decided = whole["steps"] - NOTICE["bll"]
    checkpoints = sorted(
        int(folder.name.removeprefix("batch-")) for folder in (tmp_path / "whole" / "checkpoints").iterdir()
    )
    assert whole["steps"] not in checkpoints
    kept = {"first": checkpoints[0], "middle": max(n for n in checkpoints if n < decided), "last": checkpoints[-1]}[
        after
    ]
    assert checkpoints[-1] >= decided, "otherwise nothing is between the decision and the end"
    for ranks in (1, 2):
        run = tmp_path / f"again {ranks}"
        shutil.copytree(tmp_path / "whole", run)
        (run / "summary.json").unlink()
        for folder in (run / "checkpoints").iterdir():
            if int(folder.name.removeprefix("batch-")) > kept:
                shutil.rmtree(folder)
        again = on_ranks(pool, ranks, fit, "bll", str(run), 2)[0]
        assert again["resumed_after"] == kept
        assert {key: again[key] for key in RESULTS} == {key: whole[key] for key in RESULTS}
        assert rows(run) == rows(tmp_path / "whole")


def test_without_need_the_run_is_whole(pool: Pool) -> None:
    patient, whole = (on_ranks(pool, 2, fit, "bll", "", patience)[0] for patience in (99, 0))
    assert {key: patient[key] for key in RESULTS} == {key: whole[key] for key in RESULTS}


@pytest.mark.parametrize("options", [{"evaluate_every": 3}, {"validation": 0.1}])
def test_needs_evaluations_of_held_out_data(options: dict[str, Any]) -> None:
    message = r"^train\.patience=2: needs data\.validation and train\.evaluate_every greater than 0$"
    with pytest.raises(ValueError, match=message):
        cf.Trainer(network, blocks=2).fit(data(), patience=2, **options)


def test_refused_where_gradients_come_late() -> None:
    trainer = cf.Trainer(network, rule=cf.Backprop(), blocks=2, schedule="naive")
    with pytest.raises(ValueError, match=r"^train\.patience=2: is for all values of schedule but naive and pipedream$"):
        trainer.fit(data(), validation=0.1, evaluate_every=3, patience=2)
