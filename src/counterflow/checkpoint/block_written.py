"""What a process tells the first one about a block that it has written, or could not write."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class BlockWritten:
    batches: int
    """Training batches before the cut."""
    block: int
    nbytes: int
    sha256: str
    error: str = ""
    """Why there is no such file; empty if there is."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BlockWritten":
        return cls(**json.loads(text))
