"""A page of HTML as its elements and texts."""

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """Parsed page; ``scripts`` and ``styles`` are the texts of such elements, ``text`` is all other text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        """Type and text."""
        self.styles = ""
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append((self.elements[-1][1].get("type"), data))
        elif self.cdata_elem == "style":
            self.styles += data
        else:
            self.text += data

    def attributes(self, name: str) -> list[tuple[str, str]]:
        """Tags that have the attribute, and its values."""
        return [(tag, given[name] or "") for tag, given in self.elements if name in given]

    def embedded(self) -> dict[str, Any]:
        """Items of JSON that bokeh draws, by the element that they are drawn into."""
        items = [json.loads(text) for kind, text in self.scripts if kind == "application/json"]
        return {item["target_id"]: item for item in items}


def sources(item: Any) -> list[dict[str, list[Any]]]:
    """Columns of every data source of an embedded item, in the order of the item."""
    if isinstance(item, list):
        return [source for part in item for source in sources(part)]
    if not isinstance(item, dict):
        return []
    if item.get("name") == "ColumnDataSource" and "attributes" in item:
        return [dict(item["attributes"]["data"]["entries"])]
    return [source for part in item.values() for source in sources(part)]
