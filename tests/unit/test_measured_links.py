"""The file of measured links."""

import json
from pathlib import Path
from typing import Any

import pytest

from counterflow.measured_links import MeasuredLink, read_links, write_links


def link(**more: Any) -> MeasuredLink:
    values = {"source": 0, "destination": 1, "source_node": 0, "destination_node": 1, "latency": 0.05, "bandwidth": 1e6}
    return MeasuredLink(**{**values, **more})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    links = [link(), link(source=1, destination=2, source_node=1)]
    write_links(tmp_path / "there" / "links.json", links)
    assert read_links(tmp_path / "there" / "links.json") == links
    assert [one.crosses_nodes for one in links] == [True, False]


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"links": []}',
        '{"links": [{"source": 0}]}',
        '{"links": 3}',
        json.dumps({"links": [{**vars(link()), "latency": -1}]}),
        json.dumps({"links": [{**vars(link()), "bandwidth": "much"}]}),
        json.dumps({"links": [{**vars(link()), "source_node": 0.5}]}),
    ],
)
def test_another_file_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"links.json: must be a file that `counterflow doctor --links` wrote"
    ) as error:
        read_links(path)
    assert "\n" not in str(error.value)


def test_a_file_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone: must be a file of links \(No such file or directory\)"):
        read_links(tmp_path / "gone")
