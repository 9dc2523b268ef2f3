"""Hooks of the documentation's site: formulas, and broken links."""

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))


def test_formulas_become_mathml(hooks: dict[str, Any]) -> None:
    page = '<span class="arithmatex">\\(a_k &lt; b\\)</span><div class="arithmatex">\\[\nc^2\n\\]</div><code>$</code>'
    found = hooks["to_mathml"](page)
    assert "arithmatex" not in found
    assert "<msub><mi>a</mi><mi>k</mi></msub><mo>&#x0003C;</mo><mi>b</mi>" in found
    assert found.count('display="inline"') == found.count('display="block"') == 1
    assert found.endswith("<code>$</code>")


def site(folder: Path, **pages: str) -> Path:
    for name, page in pages.items():
        (folder / name).mkdir()
        (folder / name / "index.html").write_text(page)
    return folder


def test_links_that_lead_somewhere_are_no_fault(hooks: dict[str, Any], tmp_path: Path) -> None:
    folder = site(
        tmp_path,
        a='<h1 id="top">A</h1><a href="../b/#here">b</a><a href="#top">up</a><img src="../b/x%20y.png">',
        b='<h1 id="here">B</h1><a href="https://example.org/x#y">other</a><a href="mailto:a@example.org">mail</a>',
    )
    (folder / "b" / "x y.png").touch()
    broken, external = hooks["broken_links"](folder)
    assert broken == []
    assert external == {"https://example.org/x#y", "mailto:a@example.org"}


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ('<a href="../c/">c</a>', "a/index.html links to ../c/, which is not there"),
        ('<img src="c.png">', "a/index.html links to c.png, which is not there"),
        ('<a href="../b/#there">b</a>', "a/index.html links to ../b/#there, a page without this anchor"),
        ('<a href="#nowhere">up</a>', "a/index.html links to #nowhere, a page without this anchor"),
        ('<script src="https://example.org/x.js">', "a/index.html loads https://example.org/x.js from another host"),
        (
            '<link rel="stylesheet" href="//example.org/x.css">',
            "a/index.html loads //example.org/x.css from another host",
        ),
    ],
)
def test_broken_links_are_found(hooks: dict[str, Any], tmp_path: Path, page: str, fault: str) -> None:
    broken, _ = hooks["broken_links"](site(tmp_path, a=page, b='<h1 id="here">B</h1>'))
    assert broken == [fault]
