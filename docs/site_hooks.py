"""Hooks of MkDocs: mathematics becomes MathML, and all links of the built site are checked.

Browsers show MathML by themselves, so that pages need neither a script nor a font for mathematics.
"""

import html
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from latex2mathml.converter import convert

EXTERNAL = "external_links.txt"
"""File of the site that lists the links to other hosts. They are not fetched."""

_LOG = logging.getLogger("mkdocs.hooks")  # `mkdocs build --strict` fails at its warnings
_MATHS = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def to_mathml(page: str) -> str:
    """Replace every formula that Arithmatex marked in a page."""

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match[3]).strip(), display="inline" if match[2] == "(" else "block")

    return _MATHS.sub(formula, page)


class Links(HTMLParser):
    """Anchors of a page, its links, and the files that it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") != "canonical":
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])


def broken_links(site: Path) -> tuple[list[str], set[str]]:
    """Broken links of the pages of a site, each as a line that names the page; and its links to other hosts."""
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    broken, external = [], set()
    for path, page in pages.items():
        name = path.relative_to(site)
        broken += [f"{name} loads {link} from another host" for link in page.loaded if urlsplit(link).netloc]
        for link in [*page.links, *page.loaded]:
            if urlsplit(link).scheme or urlsplit(link).netloc:
                external.add(link)
                continue
            place, anchor = urldefrag(link)
            target = (path.parent / unquote(place)).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                broken.append(f"{name} links to {link}, which is not there")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                broken.append(f"{name} links to {link}, a page without this anchor")
    return sorted(set(broken)), external


def on_page_content(content: str, /, **_: Any) -> str:
    return to_mathml(content)


def on_post_build(config: Any, **_: Any) -> None:
    site = Path(config["site_dir"])
    broken, external = broken_links(site)
    for line in broken:
        _LOG.warning(line)
    (site / EXTERNAL).write_text("".join(f"{link}\n" for link in sorted(external)))
    _LOG.info(f"{len(external)} links to other hosts are listed in {site.name}/{EXTERNAL}; none was fetched")
