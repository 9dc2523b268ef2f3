"""Where one process stands among those of its job."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Place:
    rank: int
    size: int
    local_rank: int
    """Among the processes of this node; 0 looks at what they share."""
    local_size: int
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        """From what a launcher sets. Raises ``ValueError`` for what is no number."""

        def number(name: str, otherwise: int) -> int:
            text = environment.get(name, str(otherwise))
            if not (text.isascii() and text.isdigit()):
                raise ValueError(f"{name}={text}: must be a whole number")
            return int(text)

        size = number("WORLD_SIZE", 1)
        return cls(number("RANK", 0), size, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", size))

    @property
    def one_node(self) -> bool:
        return self.size == self.local_size
