"""Mailbox in the launcher's store: messages between ranks before any process group works."""

import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

_PREFIX = "doctor/"
_POLL = 0.01
"""Seconds between two polls of the store."""


class Store(Protocol):
    """The methods of a torch.distributed store that the mailbox uses."""

    def set(self, key: str, value: str, /) -> None: ...

    def check(self, keys: list[str], /) -> bool: ...

    def get(self, key: str, /) -> bytes: ...

    def delete_key(self, key: str, /) -> bool: ...


class StoreMailbox:
    """JSON values under keys. One rank posts a value, and one other rank takes it, once.

    Needs no process group. All methods raise ``RuntimeError`` when the store is gone.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def post(self, key: str, value: Any) -> None:
        self._store.set(_PREFIX + key, json.dumps(value))

    def take(self, key: str, deadline: float) -> Any:
        """Value of ``key``, or ``None`` if there is none by ``deadline``, a time of the monotonic clock."""
        while not self._store.check([_PREFIX + key]):
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL)
        text = self._store.get(_PREFIX + key).decode()
        self._store.delete_key(_PREFIX + key)
        return json.loads(text)

    def take_all(self, name: str, ranks: Sequence[int], seconds: float) -> dict[int, Any]:
        """Values of the keys ``name/rank``, by rank, without those that are not there within ``seconds``."""
        deadline = time.monotonic() + seconds
        values = {rank: self.take(f"{name}/{rank}", deadline) for rank in ranks}
        return {rank: value for rank, value in values.items() if value is not None}
