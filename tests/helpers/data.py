"""Helpers for tests of data: a web server to download from, and the form of errors."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from counterflow.config import DataConfig
from counterflow.data import load


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the files of ``folder`` on this machine; yields the URL of the folder, which ends with a slash."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def assert_refused(config: DataConfig, *parts: str) -> None:
    """Assert that `load` raises an error of one line that begins with ``data.root`` and contains all ``parts``."""
    with pytest.raises(ValueError, match=rf"^data\.root={re.escape(config.root)}: ") as error:
        load(config)
    assert [part for part in parts if part not in str(error.value)] == []
    assert "\n" not in str(error.value)
