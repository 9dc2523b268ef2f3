"""The examples run as they are, and do what they say."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.helpers.launch import forked
from tests.helpers.processes import ROOT, Pool

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "counterflow.ipynb"


@pytest.mark.parametrize("name", ["quickstart", "own_data", "own_rule"])
def test_an_example_learns_and_writes_nothing(name: str, tmp_path: Path) -> None:
    done = forked(str(EXAMPLES / f"{name}.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracies = re.findall(r"^.*by block \[(.*)\]$", done.stdout, re.MULTILINE)[-1]
    assert min(map(float, accuracies.split(", "))) > 0.85
    assert re.search(r"^fingerprint [0-9a-f]{64}$", done.stdout, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_the_rule_is_short() -> None:
    rule = re.findall(r"^class Readout.*?(?=^def )", (EXAMPLES / "own_rule.py").read_text(), re.DOTALL | re.MULTILINE)
    assert len(rule[0].split("\n\n\n")[0].splitlines()) <= 30


def test_the_rule_gives_the_bits_of_one_process_on_two(pool: Pool) -> None:
    options = ["algorithm=custom", "algorithm.target=own_rule.Readout", "algorithm.args={smoothing: 0.1}"]
    quick = ["train.steps=220", "run.display=false", "engine.threads=1", "checkpoint.every=0"]
    (one,) = pool.run(1, _with_path, str(EXAMPLES), [*options, *quick])
    assert min(one["block_accuracy"]) > 0.9
    two = pool.run(2, _with_path, str(EXAMPLES), [*options, *quick])[0]
    assert two["fingerprint"] == one["fingerprint"]


def _with_path(rank: int, size: int, store_path: str, path: str, overrides: list[str]) -> dict[str, object]:
    import sys

    from tests.helpers.runs import configuration, train_rank

    sys.path.insert(0, path)
    try:
        summary: dict[str, object] = train_rank(rank, size, store_path, configuration(*overrides), 0.0, 0)
        return summary
    finally:
        sys.path.remove(path)


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    plots = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(plots) == 2, "of the accuracies of blocks, by one rule and by two"
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    one, several = re.findall(r"^(?:one process|three processes) +(\w{16})$", printed, re.MULTILINE)
    assert one == several
    accuracy, exported = re.findall(r"(?:accuracy |^)(0\.\d{3})", printed, re.MULTILINE)
    assert accuracy == exported, "the weights alone predict as the trained blocks did"
    assert float(accuracy) > 0.85
    assert not list(tmp_path.iterdir()), "nothing is written without run_dir"
