"""Wheels hold all files; the configuration composes alike in a checkout, in an editable install and from a wheel."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import counterflow
from counterflow.cli.hydra_app import load_config

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OVERRIDES = ["experiment=table1", "scale=cpu", "algorithm=al"]
COMPOSE = (
    f"from counterflow.cli.hydra_app import conf_dir, load_config;print(load_config({OVERRIDES}).model, conf_dir())"
)


def composed(path: Path, cwd: Path) -> tuple[str, str]:
    """The model of a composed preset, and the folder it came from; ``path`` comes before the installed package."""
    arguments = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r}); {COMPOSE}"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, cwd=cwd, check=True)
    model, _, folder = done.stdout.strip().rpartition(" ")
    return model, folder


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    source = ROOT / "src"
    found = {".".join(path.parent.relative_to(source).parts) for path in source.rglob("__init__.py")}
    assert listed == {*found, "counterflow.conf"}


def test_the_version_is_in_one_place() -> None:
    assert counterflow.__version__ == version("counterflow") == PROJECT["project"]["version"]


def build_wheel(folder: Path) -> Path:
    source = folder / "source"  # building leaves folders behind
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, timeout=110, capture_output=True)
    (wheel,) = folder.glob("counterflow-*.whl")
    return wheel


def test_checkout_editable_install_and_wheel_compose_alike(tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(build_wheel(tmp_path)) as file:
        file.extractall(unpacked)
    assert sorted(path.relative_to(unpacked / "counterflow" / "conf") for path in unpacked.rglob("*.yaml")) == sorted(
        path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")
    )
    assert (unpacked / "counterflow" / "report" / "page.html").is_file()
    from_wheel, folder = composed(unpacked, tmp_path)
    assert folder == str(unpacked / "counterflow" / "conf")
    from_checkout, folder = composed(ROOT / "src", tmp_path)
    assert folder == str(ROOT / "conf")
    installed = str(load_config(OVERRIDES).model)  # this process has the editable install
    assert from_wheel == from_checkout == installed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_trains_exports_and_predicts_outside_of_any_checkout(tmp_path: Path) -> None:
    """In an environment that shares nothing with this one but the packages that Counterflow needs."""
    wheel, environment, away = build_wheel(tmp_path), tmp_path / "environment", tmp_path / "away"
    away.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=100)
    (packages,) = environment.glob("lib/*/site-packages")
    # A folder that a .pth file names is searched, and its own .pth files, such as an editable install's, are not read.
    (packages / "needed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(environment / "bin" / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=away,
            check=True,
        )
        return str(done.stdout)

    run("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    assert run("python", "-c", "import counterflow; print(counterflow.__file__)").startswith(str(packages))
    run("counterflow", "train", "--ranks", "4", "run.dir=mine", "run.display=false")
    run("python", "-m", "counterflow", "export", "mine", "--format", "pt2")
    evaluated = json.loads(run("counterflow", "evaluate", "mine", "--json"))
    summary = json.loads((away / "mine" / "summary.json").read_text())
    trained = [sys.executable, "launch/train.py", f"run.dir={tmp_path}/checkout", "run.display=false"]
    subprocess.run(trained, cwd=ROOT, check=True, timeout=600, capture_output=True)
    assert summary["fingerprint"] == json.loads((tmp_path / "checkout/summary.json").read_text())["fingerprint"]
    assert evaluated == {"samples": 360, "accuracy": summary["test_accuracy"]}
    assert summary["test_accuracy"] > 0.96
    assert (away / "mine" / "network.pt2").stat().st_size > 100_000
