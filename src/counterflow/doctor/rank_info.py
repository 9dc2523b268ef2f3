"""Rank of one process, and the node that it runs on."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RankInfo:
    rank: int
    size: int
    local_rank: int
    """Rank among the processes of this node; local rank 0 checks the node."""
    local_size: int
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ) -> "RankInfo":
        """Read the variables that a launcher sets. Raises ``ValueError`` if one of them is not a whole number."""

        def number(name: str, default: int) -> int:
            text = environment.get(name, str(default))
            if not (text.isascii() and text.isdigit()):
                raise ValueError(f"{name}={text}: must be a whole number")
            return int(text)

        size = number("WORLD_SIZE", 1)
        return cls(number("RANK", 0), size, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", size))

    @property
    def one_node(self) -> bool:
        return self.size == self.local_size
