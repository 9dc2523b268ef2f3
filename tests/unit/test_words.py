"""Words of names and docstrings, read from the source of the package and of the tests."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.sources import tree

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "launch", "tests")
OLD_WORDS = {
    *("accounts", "ascend", "attendant", "carriage", "contender", "crew", "desk", "entrants", "halt", "keeper"),
    *("mortal", "minimise", "origin", "picture", "sheets", "shelf", "specimens", "stopwatch", "tally", "whoever"),
}
"""Parts of names that were metaphors for terms that the field has."""
OLD_CLASSES = {"Column", "Joint", "Ledger", "Life", "Station", "Durable", "Brief", "Desk", "Halt", "Track"}
NO_BEGINNING = re.compile(r"(What|Of|Whether|Where|Who|Whoever|How|When)\b")
"""First words of a docstring that name no thing and no action."""
IS_A_NAME = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[str, ast.Module]:
    """Syntax trees of all files, by path."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): tree(path) for path in paths}


def names(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Names that a file gives to classes, functions, parameters and variables, each with its line."""
    for node in ast.walk(module):
        if isinstance(node, IS_A_NAME):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


@cache
def parts(name: str) -> set[str]:
    """Words of a name in snake_case or CamelCase, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_words_of_a_name() -> None:
    assert parts("_find_RunDir") == {"find", "run", "dir"}
    assert parts("CpuGLOO") == {"cpu", "gloo"}


def test_files_have_no_old_words() -> None:
    assert not [path for path in trees() if parts(Path(path).stem) & OLD_WORDS]


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_have_no_old_words(folder: str) -> None:
    found = [
        f"{path}:{line}: {name}"
        for path, module in trees().items()
        if path.startswith(f"{folder}/") and path != "tests/unit/test_words.py"
        for line, name in names(module)
        if not name.startswith("test_") and (parts(name) & OLD_WORDS or name in OLD_CLASSES)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_a_thing_or_an_action(folder: str) -> None:
    found = [
        f"{path}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}"
        for path, module in trees().items()
        if path.startswith(f"{folder}/")
        for node in ast.walk(module)
        if isinstance(node, IS_A_NAME | ast.Module)
        if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
        if (text := ast.get_docstring(node)) and NO_BEGINNING.match(text)
    ]
    assert not found, "\n".join(found)
