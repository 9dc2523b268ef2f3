"""Measured links between neighbouring ranks, and the file in which the doctor leaves them for the planner."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MeasuredLink:
    """One direction between two neighbouring ranks."""

    source: int
    destination: int
    source_node: int
    """Number of the node of rank ``source``, from 0, in the order of ranks."""
    destination_node: int
    latency: float
    """Seconds of a small message, from the hand-over to the block that takes it."""
    bandwidth: float
    """Bytes per second of large messages."""

    def __post_init__(self) -> None:
        for number in (self.source, self.destination, self.source_node, self.destination_node):
            if type(number) is not int or number < 0:
                raise ValueError(f"{number}: must be a whole number of at least 0")
        for name, value in (("latency", self.latency), ("bandwidth", self.bandwidth)):
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be a number greater than 0")

    @property
    def crosses_nodes(self) -> bool:
        return self.source_node != self.destination_node


def write_links(path: Path, links: Sequence[MeasuredLink]) -> None:
    """Write ``links`` as JSON. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"links": [asdict(link) for link in links]}, indent=2) + "\n")


def read_links(path: Path) -> list[MeasuredLink]:
    """The links of a file of `write_links`.

    Raises:
        ValueError: There is no such file; one line that names it.
    """
    names = {field.name for field in fields(MeasuredLink)}
    try:
        links = json.loads(path.read_text())["links"]
        if not links or any(set(link) != names for link in links):
            raise ValueError("it has no links, or other keys")
        return [MeasuredLink(**link) for link in links]
    except OSError as error:
        raise ValueError(f"{path}: must be a file of links ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: must be a file that `counterflow doctor --links` wrote ({error})") from error
