"""The launcher's environment, read in one place: which process of how many this is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RankInfo:
    """One process of a job, as torchrun describes it; the defaults are those of a single process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this node."""
    local_size: int | None = 1
    """Processes of this node; None where the launcher does not say."""
    restart_count: int = 0
    """Restarts of the whole job by torchrun's agent so far."""
    run_id: str | None = None
    """torchrun's name of the job; None under another launcher."""
    master_addr: str = ""
    """Host of the store at which the ranks meet."""
    master_port: int = 0
    error_file: str | None = None
    """File in which torchrun's agent expects the message of a failure."""
    agent_hosts_store: bool = False
    """torchrun's agent hosts the store, not rank 0."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def speaks_for_node(self) -> bool:
        """This process reports what all processes of its node find alike."""
        return self.local_rank == 0

    @classmethod
    def from_env(cls, environment: Mapping[str, str] = os.environ) -> "RankInfo":
        """The process that ``environment`` describes.

        Raises:
            ValueError: A variable is missing or out of range; one line that names it.
        """
        size = _number(environment, "WORLD_SIZE", 1, 2**31 - 1) if "WORLD_SIZE" in environment else 1
        if size == 1:
            return cls(**_elastic(environment))
        rank = _number(environment, "RANK", 0, size - 1)
        host, port = _text(environment, "MASTER_ADDR"), _number(environment, "MASTER_PORT", 1, 2**16 - 1)
        local_size = None
        if "LOCAL_WORLD_SIZE" in environment:
            local_size = _number(environment, "LOCAL_WORLD_SIZE", 1, size)
        local_rank = 0
        if "LOCAL_RANK" in environment:
            local_rank = _number(environment, "LOCAL_RANK", 0, (local_size or size) - 1)
        return cls(
            rank=rank,
            size=size,
            local_rank=local_rank,
            local_size=local_size,
            **_elastic(environment),
            master_addr=host,
            master_port=port,
            agent_hosts_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )


def _elastic(environment: Mapping[str, str]) -> dict[str, Any]:
    count = "TORCHELASTIC_RESTART_COUNT"
    return {
        "restart_count": _number(environment, count, 0, 2**31 - 1) if count in environment else 0,
        "run_id": environment.get("TORCHELASTIC_RUN_ID"),
        "error_file": environment.get("TORCHELASTIC_ERROR_FILE"),
    }


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise ValueError(f"{name}: must be set for WORLD_SIZE={environment.get('WORLD_SIZE')} processes to meet")
    return value


def _number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    value = _text(environment, name)
    if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
        raise ValueError(f"{name}={value}: must be a whole number of {least} to {most}")
    return int(value)
