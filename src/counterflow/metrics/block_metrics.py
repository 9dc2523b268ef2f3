"""What one block reports about one batch, and the row that the records of all blocks make."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BlockMetrics:
    """``event`` is ``train`` (figures of `LocalRule.update`), or the split evaluated: ``validation``, ``test``."""

    event: str
    n: int
    block: int
    rank: int
    figures: Mapping[str, float]
    seconds: float
    """Since this rank began, and before that in the run that it goes on with."""
    waited: float
    """Share of the time since this rank began that it waited for a message."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BlockMetrics":
        return cls(**json.loads(text))


@dataclass(frozen=True)
class StepMetrics:
    """The records of all blocks about batch ``n``, bottom to top, and the figures of the whole system."""

    event: str
    n: int
    records: Sequence[BlockMetrics]
    system: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return max(record.seconds for record in self.records)

    @property
    def waited(self) -> list[float]:
        """Per rank."""
        return list({record.rank: record.waited for record in self.records}.values())

    def column(self, name: str) -> list[float | None]:
        """Figure ``name`` of every block; None where a block has none."""
        return [record.figures.get(name) for record in self.records]

    def to_json(self) -> str:
        names = dict.fromkeys(name for record in self.records for name in record.figures)
        content: dict[str, Any] = {
            "event": self.event,
            "n": self.n,
            "seconds": round(self.seconds, 4),
            **self.system,
            **{name: self.column(name) for name in names},
            "wait_fraction": [round(share, 4) for share in self.waited],
        }
        return json.dumps(content)
