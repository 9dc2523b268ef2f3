"""SIGTERM and SIGINT: the first one asks for an end in good order, where there is one; the second one is the end."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

CAUGHT = (signal.SIGTERM, signal.SIGINT)
_SHOW_CURSOR = b"\x1b[?25h"


class Signals:
    """Catches both from now on, on a thread of its own: the main thread may be inside an operation that takes minutes,
    and Python loses an exception that is raised in a destructor. Must be made on the main thread."""

    def __init__(self) -> None:
        self._orderly: Callable[[int], bool] | None = None
        self._expiry: threading.Timer | None = None
        self._lock = threading.Lock()
        here, there = os.pipe()
        os.set_blocking(there, False)
        signal.set_wakeup_fd(there, warn_on_full_buffer=False)
        for number in CAUGHT:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._run, args=(here,), name="signals", daemon=True).start()

    @contextmanager
    def handled_by(self, orderly: Callable[[int], bool]) -> Iterator[None]:
        """Within it, the first signal is given to ``orderly``, which returns at once whether it sees to the end."""
        self._orderly = orderly
        try:
            yield
        finally:
            self._orderly = None

    def request(self, number: int) -> bool:
        """Ask for the end in good order that signal ``number`` would be; whether somebody sees to it."""
        orderly = self._orderly
        return orderly is not None and orderly(number)

    def expire(self, number: int, seconds: float, message: str) -> None:
        """End after so many seconds with ``message``, as signal ``number`` would; the first call counts."""
        with self._lock:
            if self._expiry is None:
                self._expiry = threading.Timer(seconds, end, [number, message])
                self._expiry.daemon = True
                self._expiry.start()

    def _run(self, pipe: int) -> None:
        while True:
            (number,) = os.read(pipe, 1)
            if not self.request(number):
                end(number)
            self._orderly = None


def end(number: int, message: str = "") -> NoReturn:
    """End this process now, with the status that a shell gives to ``number``."""
    if message:
        os.write(2, f"{message}\n".encode())
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(1, _SHOW_CURSOR)  # a live display may have hidden it
    os._exit(128 + number)
