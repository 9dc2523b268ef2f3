"""Handling of SIGTERM and SIGINT: the first one requests an orderly end, the second one ends the process at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class Signals:
    """Handler of both signals, on a thread of its own. Must be created on the main thread.

    The main thread may be inside an operation that takes minutes, and Python drops an exception that a handler raises
    inside a destructor.
    """

    def __init__(self) -> None:
        self._orderly: Callable[[int], bool] | None = None
        self._expiry: threading.Timer | None = None
        self._lock = threading.Lock()
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._run, args=(read_end,), name="signals", daemon=True).start()

    @contextmanager
    def handled_by(self, orderly: Callable[[int], bool]) -> Iterator[None]:
        """Within it, call ``orderly(signal)`` on the first signal; it returns at once, True if it ends the process."""
        self._orderly = orderly
        try:
            yield
        finally:
            self._orderly = None

    def request(self, number: int) -> bool:
        """Request an orderly end as signal ``number`` would; False if there is no handler, or it declines."""
        orderly = self._orderly
        return orderly is not None and orderly(number)

    def expire(self, number: int, seconds: float, message: str) -> None:
        """End the process in ``seconds`` with ``message``, as signal ``number`` would; only the first call counts."""
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
    """End this process now, with the exit status that a shell reports for signal ``number``."""
    if message:
        os.write(2, f"{message}\n".encode())
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(1, b"\x1b[?25h")  # shows the cursor, which a live display may have hidden
    os._exit(128 + number)
