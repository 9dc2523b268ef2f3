"""The README's two examples do what the README says."""

import re
from pathlib import Path

from tests.helpers.launch import forked
from tests.helpers.processes import ROOT, Pool

README = (ROOT / "README.md").read_text()
NETWORK, RULE = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200
    assert len(RULE.splitlines()) <= 40


def test_the_network_of_the_readme_learns_and_leaves(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(NETWORK.replace("epochs=20", "epochs=6"))
    done = forked(str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = float(re.findall(r"^(0\.\d+) \[", done.stdout, re.MULTILINE)[0])
    assert accuracy > 0.9
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"], "nothing is written without run_dir"


def test_the_rule_of_the_readme_gives_the_bits_of_one_process_on_two(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "readout.py").write_text(RULE)
    options = ["algorithm=custom", "algorithm.target=readout.Readout", "algorithm.args={smoothing: 0.1}"]
    quick = ["train.steps=220", "run.display=false", "engine.threads=1", "checkpoint.every=0"]
    (one,) = pool.run(1, _with_path, str(tmp_path), [*options, *quick])
    assert min(one["block_accuracy"]) > 0.9
    two = pool.run(2, _with_path, str(tmp_path), [*options, *quick])[0]
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
