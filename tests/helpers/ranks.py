"""A function of the public API on several ranks of the pool, which see the environment that a launcher gives."""

import os
from collections.abc import Callable
from typing import Any

from torch._C._distributed_c10d import TCPStore

from tests.helpers.processes import Pool


def on_ranks(pool: Pool, ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(*args)`` on every rank; what each returned, in rank order."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = pool.run(ranks, _call, store.port, function, args)
    del store
    return results


def _call(rank: int, size: int, store_path: str, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    before = dict(os.environ)
    environment = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")
    try:
        return function(*args)
    finally:
        os.environ.clear()
        os.environ.update(before)
