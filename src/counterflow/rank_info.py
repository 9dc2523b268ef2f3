"""The launcher's environment, read in one place: rank, number of ranks, node, and address of the store."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address


@dataclass(frozen=True)
class RankInfo:
    """One process of a job; the defaults are those of a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this node; 0 if the launcher does not set it."""
    local_size: int = 1
    """Processes of this node. If the launcher does not set it: all if they meet on loopback, otherwise 1."""
    host: str = field(default_factory=socket.gethostname)
    restart_count: int = 0
    """Restarts of the whole job by torchrun's agent so far."""
    run_id: str | None = None
    """torchrun's name of the job; None under another launcher."""
    master: tuple[str, int] | None = None
    """Host and port of the store at which the ranks meet; None for a single process."""
    agent_hosts_store: bool = False
    """True if torchrun's agent hosts the store, on all interfaces; False if rank 0 does."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def one_node(self) -> bool:
        """True if all ranks are known to run on this node."""
        return self.local_size == self.size

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ) -> "RankInfo":
        """Read the variables that torchrun sets, or a user who starts ranks by hand.

        Raises:
            ValueError: A variable is missing, no whole number, or out of range; one line that names it.
        """

        def text(name: str) -> str:
            value = environment.get(name)
            if not value:
                raise ValueError(f"{name}: must be set for WORLD_SIZE={environment['WORLD_SIZE']} processes to meet")
            return value

        def number(name: str, least: int, most: int, default: int | None = None) -> int:
            if default is not None and name not in environment:
                return default
            value = text(name) if default is None else environment[name]
            if not (value.isascii() and value.isdigit()):
                raise ValueError(f"{name}={value}: must be a whole number")
            if not least <= int(value) <= most:
                raise ValueError(f"{name}={value}: must be between {least} and {most}")
            return int(value)

        largest = 2**31 - 1
        size = number("WORLD_SIZE", 1, largest, default=1)
        restarts = number("TORCHELASTIC_RESTART_COUNT", 0, largest, default=0)
        run_id = environment.get("TORCHELASTIC_RUN_ID")
        if size == 1:
            return cls(restart_count=restarts, run_id=run_id)
        rank = number("RANK", 0, size - 1)
        master_addr = text("MASTER_ADDR")
        local_size = number("LOCAL_WORLD_SIZE", 1, size, default=size if _is_loopback(master_addr) else 1)
        return cls(
            rank=rank,
            size=size,
            local_rank=number(
                "LOCAL_RANK", 0, (local_size if "LOCAL_WORLD_SIZE" in environment else size) - 1, default=0
            ),
            local_size=local_size,
            restart_count=restarts,
            run_id=run_id,
            master=(master_addr, number("MASTER_PORT", 1, 2**16 - 1)),
            agent_hosts_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # Many a hosts file maps this machine's own name to loopback, while other machines know it by another address.
        return host == "localhost"
