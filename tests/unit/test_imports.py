"""Layers of the package: which parts may import which, read from the source.

A part is a module or a package directly under ``counterflow``. Every part names all parts that it may import. A new
part needs an entry here first.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.sources import tree

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "counterflow"

VALUES = {"message", "topology", "seeding", "config", "rank_info"}
"""Values: no tensors, no processes."""
MAY_IMPORT = {
    "message": set[str](),
    "topology": set[str](),
    "seeding": set[str](),
    "config": set[str](),
    "rank_info": set[str](),
    "signals": set[str](),
    "checksum": set[str](),
    "plot_style": set[str](),
    "measured_links": set[str](),
    "checkpoint": {"checksum"},
    "schedule": {"message", "topology"},
    "transport": {"message", "topology", "rank_info"},
    "data": {"config", "seeding", "checksum"},
    "models": {"config", "seeding"},
    "algorithms": {"config", "seeding", "data", "models"},
    "inference": {"config", "data", "models", "algorithms", "checkpoint", "checksum"},
    "metrics": {"checkpoint"},
    "trace": {"checkpoint", "transport", "plot_style"},
    "engine": VALUES | {"schedule", "transport", "data", "models", "algorithms", "metrics", "checkpoint", "trace"},
    "recovery": {"message", "topology", "signals", "transport"},
    "trainer": VALUES
    | {"schedule", "transport", "data", "models", "algorithms", "metrics", "checkpoint", "trace", "engine"}
    | {"signals", "recovery", "inference", "checksum"},
    "cli": VALUES
    | {"transport", "algorithms", "metrics", "engine", "signals", "recovery", "trainer"}
    | {"data", "inference"},
    "report": {"metrics", "cli", "plot_style"},  # reads files alone
    "doctor": {"message", "topology", "rank_info", "measured_links", "transport", "metrics", "cli"},
    "planner": VALUES | {"measured_links", "schedule", "models", "algorithms", "engine", "trainer", "cli"},
    "bench": VALUES
    | {"schedule", "transport", "data", "algorithms", "metrics", "checkpoint", "trace", "engine", "trainer", "cli"}
    | {"plot_style"},
    "__main__": {"cli"},
}
WITHOUT_TENSORS = ("message", "topology", "seeding", "schedule", "config", "rank_info", "measured_links")
KNOWS_PROCESSES = {
    "counterflow.engine.pipelined",
    "counterflow.bench.p2p",
    "counterflow.bench.memory_tracker",
    "counterflow.bench.workers",
    "counterflow.recovery.recoverable",
    "counterflow.trainer.spawn",
    "counterflow.cli.launch",
    "counterflow.doctor.endpoint",
}
"""Beside transport: the schedules of torch.distributed.pipelining do their own communication, and so does gloo alone,
with which channels are compared. Recovery makes process groups for new processes; the doctor asks
torchrun's own rule; the others start processes."""
KNOWS_HYDRA = {
    "counterflow.cli.hydra_app",
    "counterflow.cli.train",
    "counterflow.planner.cli",
    "counterflow.planner.options",
    "counterflow.bench.cli",
    "counterflow.bench.options",
}
"""Command lines, and the options that they register."""
SHARED_NAMES = {
    "cli": "the command line of a package",
    "options": "the option dataclasses of a command line",
}
"""Module names that may occur twice, and their one meaning."""

MAX_LINES = 400
MAX_LAUNCH_LINES = 80
MAX_PARAMETERS = 10


@cache
def modules() -> dict[str, Path]:
    """All modules of the package, by their dotted name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@cache
def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it; of ``from a import b`` both ``a`` and ``a.b``."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; this test reads absolute ones"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@cache
def imported_modules(name: str) -> set[str]:
    """Modules of the package that module ``name`` imports; the package of one only where something else is taken."""
    found = set()
    for node in ast.walk(tree(modules()[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else node.module)
    return found & modules().keys()


def part(module: str) -> str:
    """The part that a module of the package belongs to; the package itself belongs to none."""
    return module.split(".")[1] if "." in module else ""


def test_modules_and_imports_are_found() -> None:
    """This test sees what it is about."""
    assert {"counterflow.engine.channels", "counterflow.transport", "counterflow.trainer.fit"} <= modules().keys()
    assert "counterflow.transport" in imported_modules("counterflow.engine.channels")
    assert "counterflow.engine.run_context" in imported_modules("counterflow.engine.stage")
    assert "torch.distributed" in imports(modules()["counterflow.transport.remote"])


def test_every_part_has_its_place() -> None:
    assert {part(name) for name in modules()} - {""} == MAY_IMPORT.keys()


@pytest.mark.parametrize("here", sorted(MAY_IMPORT))
def test_imports_go_downward(here: str) -> None:
    for name in modules():
        if part(name) == here:
            found = {part(other) for other in imported_modules(name)} - {here, ""}
            assert found <= MAY_IMPORT[here], f"{name} must not import {sorted(found - MAY_IMPORT[here])}"


def test_the_package_itself_loads_nothing() -> None:
    code = (
        "import sys, counterflow\n"
        "found = [name for name in sys.modules if name.startswith('counterflow.') or name == 'torch']\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_itself_goes_downward() -> None:
    order = list(TopologicalSorter(MAY_IMPORT).static_order())
    assert set(order) == MAY_IMPORT.keys()
    assert not {"algorithms", "engine"} & MAY_IMPORT["transport"]
    assert not {"transport", "engine"} & MAY_IMPORT["algorithms"]
    assert not {"engine", "transport", "algorithms"} & MAY_IMPORT["metrics"]
    assert not {"cli", "trainer"} & (MAY_IMPORT["engine"] | MAY_IMPORT["recovery"])
    assert "cli" not in MAY_IMPORT["trainer"]
    assert {here for here, below in MAY_IMPORT.items() if "recovery" in below} == {"trainer", "cli"}
    assert {here for here, below in MAY_IMPORT.items() if "cli" in below} == {
        "planner", "bench", "doctor", "report", "__main__",
    }  # fmt: skip


def test_only_command_lines_know_hydra() -> None:
    found = {name for name, path in modules().items() if any(i.split(".")[0] == "hydra" for i in imports(path))}
    assert found <= KNOWS_HYDRA


def test_only_the_page_of_a_report_knows_bokeh() -> None:
    """Bokeh may be missing: the command line of the report alone loads what imports it."""
    extra = {"bokeh", "jinja2"}
    page = {name for name, path in modules().items() if extra & {i.split(".")[0] for i in imports(path)}}
    assert page == {f"counterflow.report.{name}" for name in ("page", "interactive_plots", "run_table")}
    users = {name for name in modules() if imported_modules(name) & page}
    assert users - page == {"counterflow.report.cli"}


def test_no_cycles() -> None:
    try:
        TopologicalSorter({name: imported_modules(name) - {name} for name in modules()}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_no_module_imports_the_front_of_its_own_package() -> None:
    """``__init__`` imports the modules of a package, some of them by looking into the folder: never the other way."""
    fronts = {name: name.rpartition(".")[0] for name in modules()}
    assert not [name for name, front in fronts.items() if front and front in imported_modules(name)]


def test_only_algorithms_and_custom_models_are_found_by_looking() -> None:
    """An import by name would go past all of these tests."""
    dynamic = {
        name
        for name, path in modules().items()
        if any(i.split(".")[0] == "importlib" and not i.startswith("importlib.metadata") for i in imports(path))
        or "__import__" in path.read_text()
    }
    assert dynamic <= {
        "counterflow",  # public names, each loaded when it is used
        "counterflow.algorithms",
        "counterflow.models.custom",
        "counterflow.cli.main",
    }


@pytest.mark.parametrize("here", WITHOUT_TENSORS)
def test_plain_values_load_no_tensors(here: str) -> None:
    for name, path in modules().items():
        if part(name) == here:
            assert not {i for i in imports(path) if i.split(".")[0] in ("torch", "torchvision", "numpy")}, name


def test_plain_values_load_no_tensors_by_way_of_others() -> None:
    code = (
        f"import sys\nimport {', '.join(f'counterflow.{here}' for here in WITHOUT_TENSORS)}\n"
        "assert 'torch' not in sys.modules, 'torch is loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_transport_knows_processes() -> None:
    for name, path in modules().items():
        if part(name) == "transport" or name in KNOWS_PROCESSES:
            continue
        if not re.search("distributed|multiprocessing", path.read_text()):
            continue  # as most; to write out all attributes takes a second
        attributes = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        used = {i for i in imports(path) | attributes if i.startswith(("torch.distributed", "torch.multiprocessing"))}
        assert not used, f"{name} uses {sorted(used)}"


def test_files_are_of_a_readable_size() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}, "a file that long is two files"


def test_a_module_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for name, path in modules().items():
        if path.stem != "__init__" and path.stem not in SHARED_NAMES:
            places.setdefault(path.stem, []).append(name)
    assert not {stem: names for stem, names in places.items() if len(names) > 1}


def test_constructors_have_few_parameters() -> None:
    """Beside those of dataclasses, which list options, and of the Trainer, which is the public interface."""
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and node.name != "Trainer":
                for item in node.body:
                    if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                        given = [*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs][1:]
                        assert len(given) < MAX_PARAMETERS, f"{name}.{node.name}"


def test_names_say_what_is_in_a_file() -> None:
    assert not [name for name, path in modules().items() if path.stem in ("utils", "util", "helpers", "common", "misc")]


PROGRAMS = sorted((ROOT / "launch").glob("*.py"))


def test_there_are_programs() -> None:
    assert ROOT / "launch" / "train.py" in PROGRAMS


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_programs_only_assemble(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < MAX_LAUNCH_LINES
    foreign = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"counterflow"}
    assert not foreign
    assert not [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
