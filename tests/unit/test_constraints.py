"""The pinned versions: all that is declared has one, all that is imported is declared, every installer takes them."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.sources import tree

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts if not text.startswith("counterflow[")]
    for name, texts in PROJECT["optional-dependencies"].items()
}
TESTS, DOCS = EXTRAS["test"], EXTRAS["docs"]
OPTIONAL = [wanted for name, extra in EXTRAS.items() if name not in ("docs", "test") for wanted in extra]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINNED = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}
DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "kubernetes_validate": "kubernetes-validate",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Where a package is not imported by its name."""


def test_constraints_are_names_and_versions_only() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(PINNED) == len(LINES)


def test_every_declared_dependency_is_pinned_in_its_range() -> None:
    declared = [*RUNTIME, *OPTIONAL, *TESTS, *DOCS]
    assert [str(wanted) for wanted in declared if PINNED[canonicalize_name(wanted.name)] not in wanted.specifier] == []


def test_everything_imported_is_declared() -> None:
    needed = {canonicalize_name(wanted.name) for wanted in RUNTIME}
    optional = {wanted.name for wanted in OPTIONAL}
    helpers = {path.stem for path in (ROOT / "tests").rglob("*")} | {"tests"}
    for folder, declared in (
        ("src", needed | optional | {"onnxruntime"}),
        ("launch", needed),
        ("examples", needed),
        ("docs", {wanted.name for wanted in DOCS}),
        ("tests", needed | optional | helpers | {wanted.name for wanted in TESTS}),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            imported = {name.partition(".")[0] for name in _imports(path)}
            others = {DISTRIBUTIONS.get(name, name) for name in imported - sys.stdlib_module_names - {"counterflow"}}
            assert others <= declared, path


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree(path)):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module)
    return found


def test_make_and_the_image_take_them() -> None:
    for name in ("Makefile", "Dockerfile"):
        installs = [
            line for line in (ROOT / name).read_text().splitlines() if " pip install" in line or "-m pip" in line
        ]
        assert all("--constraint" in line or "--no-deps" in line for line in installs), name
        assert any("--constraint" in line for line in installs), name
