"""Calls into the operating system that may never return: names that no server resolves, disks that do not answer."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def bounded(seconds: float, call: Callable[[], _T]) -> _T:
    """What ``call()`` returns or raises; ``TimeoutError`` if it does neither in time, and is left to itself."""
    outcome: queue.SimpleQueue[_T | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(call())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        result = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"nothing within {seconds:g} s") from None
    if isinstance(result, Exception):
        raise result
    return result
