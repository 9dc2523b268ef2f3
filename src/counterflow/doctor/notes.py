"""What ranks tell each other while nothing is sure to work but the launcher's store."""

import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

_PREFIX = "doctor/"
_POLL = 0.01
"""Seconds between two looks."""


class Store(Protocol):
    """What is used of torch.distributed's."""

    def set(self, key: str, value: str, /) -> None: ...

    def check(self, keys: list[str], /) -> bool: ...

    def get(self, key: str, /) -> bytes: ...

    def delete_key(self, key: str, /) -> bool: ...


class Notes:
    """Values of JSON under keys, each written by one rank and taken once by another.

    Needs no process group. Everything raises ``RuntimeError`` when the store is gone.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def post(self, key: str, value: Any) -> None:
        self._store.set(_PREFIX + key, json.dumps(value))

    def take(self, key: str, until: float) -> Any:
        """``None`` if nothing is there by ``until``, a time of the monotonic clock."""
        while not self._store.check([_PREFIX + key]):
            if time.monotonic() >= until:
                return None
            time.sleep(_POLL)
        text = self._store.get(_PREFIX + key).decode()
        self._store.delete_key(_PREFIX + key)
        return json.loads(text)

    def take_all(self, name: str, ranks: Sequence[int], seconds: float) -> dict[int, Any]:
        """The notes ``name/rank`` that come within ``seconds``."""
        until = time.monotonic() + seconds
        found = {rank: self.take(f"{name}/{rank}", until) for rank in ranks}
        return {rank: value for rank, value in found.items() if value is not None}
