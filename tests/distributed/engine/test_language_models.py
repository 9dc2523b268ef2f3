"""Language models under every rule: no placement and no restart changes a bit, and generation follows the run."""

import json
import math
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import counterflow as cf
from counterflow.cli import evaluate, generate
from counterflow.data import load as load_data
from counterflow.inference.generation import Decoder
from tests.distributed.engine.test_resume import interrupt
from tests.helpers.configs import configured
from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

SOURCE = Path(cf.__file__).parent / "algorithms"
RULES = {
    "bll": ("algorithm.head.layers=1", "algorithm.feedback.refresh=2"),
    "predsim": ("algorithm=predsim", "algorithm.beta=0", "algorithm.head.layers=1"),
    "al": ("algorithm=al", "algorithm.dim=12"),
    "bp": ("algorithm=bp",),
}
Run = Callable[..., dict[str, Any]]


def options(cache_folder: Path, rule: str) -> tuple[str, ...]:
    return (
        "data=text", f"data.root={SOURCE}", f"data.cache={cache_folder}", "data.length=16", "data.evaluated=48",
        "model=gpt", "model.layers=3", "model.width=16", "model.heads=2", "model.hidden=24", "model.dropout=0.1",
        "optimizer.clip=0.5", "optimizer.floor=0.1", "optimizer.bias_decay=false", "optimizer.weight_decay=0.1",
        "blocks=4", *RULES[rule],
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The summary of a small run."""
    folder = tmp_path_factory.mktemp("cache")
    return cache(lambda rule, ranks, *more, **how: summary_of(pool, ranks, *options(folder, rule), *more, **how))


RESULTS = (
    *("fingerprint", "bits_per_byte", "block_bits_per_byte", "validation_block_bits_per_byte", "perplexity"),
    *("block_bits_by_position", "validation_block_bits_by_position"),
)


@pytest.mark.parametrize(("rule", "ranks"), [("bll", 2), ("bll", 4), ("predsim", 3), ("al", 4)])
def test_processes_change_nothing(run: Run, rule: str, ranks: int) -> None:
    alone, together = run(rule, 1), run(rule, ranks)
    assert {key: together[key] for key in RESULTS} == {key: alone[key] for key in RESULTS}
    assert alone["test_sequence_accuracy"] is None
    assert all(0 < bits < 16 for bits in alone["block_bits_per_byte"])
    for bits, parts in zip(alone["block_bits_per_byte"], alone["block_bits_by_position"], strict=True):
        lengths = (1, 1, 2, 4, 8)  # of a window of 16
        assert sum(n * part for n, part in zip(lengths, parts, strict=True)) / 16 == pytest.approx(bits, rel=1e-9)


def test_the_norm_of_the_whole_gradient_is_limited_on_several_processes(run: Run) -> None:
    """Up to rounding, as parts of a batch are added up; the limit is so low that it always counts."""
    fixed = ("model.dropout=0", "optimizer=sgd", "optimizer.lr=1")
    alone, together, unlimited = (
        run("bp", ranks, *fixed, f"optimizer.clip={clip}")["bits_per_byte"]
        for ranks, clip in ((1, 0.1), (2, 0.1), (1, 0))
    )
    assert together == pytest.approx(alone, rel=1e-5)
    assert unlimited != pytest.approx(alone, rel=1e-2)


def evaluations(run: Path) -> dict[int, float]:
    """Bits per byte of the network on held-out text, by the batches before."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["n"] + 1: row["bits_per_byte"][-1] for row in rows if row["event"] == "validation"}


@pytest.mark.parametrize("rule", ["predsim", "bp"])
def test_the_best_weights_and_the_early_end_go_by_bits(run: Run, tmp_path: Path, rule: str) -> None:
    """At a rate at which the bits rise again, on a text of 40 words; test_block_metrics has the score itself."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 5))) for _ in range(40)]
    text = tmp_path / "words.txt"
    text.write_text(" ".join(draw.choices(words, k=6000)))
    how = (
        f"data.root={text}",
        "optimizer.lr=0.1",
        "optimizer.schedule=constant",
        "train.steps=40",
        "train.evaluate_every=2",
    )
    more = ("checkpoint.best=true", "data.evaluated=16")
    whole = run(rule, 1, *how, *more, directory=tmp_path / "whole")
    found = evaluations(tmp_path / "whole")
    best = min(found, key=found.__getitem__)
    assert (whole["best_steps"], whole["best_validation_bits_per_byte"]) == (best, found[best])
    assert whole["best_validation_accuracy"] is None
    # The lowest so far is followed by two that are higher: some batches later the run ends.
    early = run(rule, 2 if rule == "predsim" else 1, *how, *more, "train.patience=2", directory=tmp_path / "early")
    bits = [found[batches] for batches in sorted(found)]
    decided = next(i for i in range(2, len(bits)) if bits.index(min(bits[: i + 1])) <= i - 2)
    notice = 2 * 3 + 2 + 2  # lag * (blocks - 1), the messages posted ahead, and 2
    assert early["steps"] == 2 * (decided + 1) + notice < 40
    assert list(evaluations(tmp_path / "early")) == [n for n in found if n <= early["steps"]]


@pytest.mark.parametrize("rule", ["bll", "predsim", "al"])
def test_a_run_that_goes_on_ends_with_the_same_bits(run: Run, tmp_path: Path, rule: str) -> None:
    often = ("checkpoint.every=4", "checkpoint.keep=9")
    whole = run(rule, 3, *often, directory=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    interrupt(tmp_path / "broken", 8)
    again = run(rule, 2, *often, directory=tmp_path / "broken")
    assert again["resumed_after"] == 8
    assert {key: again[key] for key in RESULTS} == {key: whole[key] for key in RESULTS}


@pytest.mark.parametrize("rule", RULES)
def test_every_exit_has_the_bits_of_the_run(
    run: Run, tmp_path: Path, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured by hand on the test data, and by ``counterflow evaluate``."""
    summary = run(rule, 1, directory=tmp_path)
    config = configured(*[o for o in options(tmp_path / "cache", rule) if o.startswith("data")])
    dataset = load_data(config.data)
    assert dataset.test is not None
    assert dataset.tokens_per_byte is not None
    inputs, labels = dataset.test.rows(slice(None))
    for one in summary["exits"]:
        predictor = cf.load(tmp_path, blocks=one["block"])
        nats = F.cross_entropy(predictor(inputs).flatten(0, 1), labels.flatten())
        bits = float(nats) * dataset.tokens_per_byte["test"] / math.log(2)
        assert bits == pytest.approx(summary["block_bits_per_byte"][one["block"] - 1], rel=1e-5)
    assert evaluate.main([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] == pytest.approx(summary["bits_per_byte"], rel=1e-5)
    assert evaluate.main([str(tmp_path), "--json", "--text", str(SOURCE / "bll.py")]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == (SOURCE / "bll.py").stat().st_size // 16


@pytest.mark.parametrize("rule", ["bll", "predsim", "bp"])
def test_the_cache_of_keys_and_values_changes_no_score(run: Run, tmp_path: Path, rule: str) -> None:
    """At every exit, for a prompt and tokens after it, as far as a window of training reaches."""
    summary = run(rule, 1, directory=tmp_path)
    tokens = torch.tensor(list(b"def rule(a, b):\n"))
    for one in summary["exits"]:
        predictor = cf.load(tmp_path, blocks=one["block"])
        decoder = Decoder(predictor)
        found = [decoder.scores(tokens[:5]), *(decoder.scores(tokens[t : t + 1]) for t in range(5, 16))]
        expected = predictor(tokens[None])[0, 4:]
        torch.testing.assert_close(torch.stack(found), expected, rtol=1e-4, atol=1e-5)
        for t in range(40):
            assert decoder.scores(tokens[t % 16 : t % 16 + 1]).isfinite().all(), "beyond the window"


def test_generation_on_the_command_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("bll", 1, directory=tmp_path)

    def printed(*arguments: str) -> str:
        assert generate.main([str(tmp_path), "--prompt", "def ", "--tokens", "30", *arguments]) == 0
        return capsys.readouterr().out

    assert printed() == printed()
    assert printed().startswith("def ")
    assert printed("--seed", "1") != printed()
    assert printed("--temperature", "0") == printed("--top-k", "1"), "the likeliest token"
    assert printed("--blocks", "2") != printed()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt: must not be empty"),
        (["--temperature", "-1"], "argument --temperature: -1: must be a number of at least 0"),
        (["--tokens", "0"], "argument --tokens: 0: must be a whole number of at least 1"),
        (["--blocks", "9"], "blocks=9: allowed are 1, 2, 3, 4"),
    ],
)
def test_what_generation_refuses(
    run: Run, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("predsim", 1, directory=tmp_path)
    with pytest.raises(SystemExit):
        generate.main([str(tmp_path), *arguments])
    assert message in capsys.readouterr().err


def test_other_networks_generate_nothing(pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary_of(pool, 1, directory=tmp_path)
    with pytest.raises(SystemExit):
        generate.main([str(tmp_path)])
    assert "the network is no language model, allowed is one of model=gpt" in capsys.readouterr().err
