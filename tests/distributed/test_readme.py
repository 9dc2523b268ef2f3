"""The README's example does what the README says."""

import re
from pathlib import Path

from tests.helpers.launch import forked
from tests.helpers.processes import ROOT

README = (ROOT / "README.md").read_text()
(NETWORK,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_the_network_of_the_readme_learns_and_leaves(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(NETWORK.replace("epochs=20", "epochs=6"))
    done = forked(str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = float(re.findall(r"^(0\.\d+) \[", done.stdout, re.MULTILINE)[0])
    assert accuracy > 0.9
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"], "nothing is written without run_dir"
