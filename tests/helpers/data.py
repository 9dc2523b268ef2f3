"""Helpers for tests of data: a web server to download from, the form of errors, and images of stripes."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor

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


def stripes(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Striped images, uint8 ``[size, 3, 20, 12]``, and the direction of their stripes, int64 ``[size]``.

    Class 0 changes from row to row, 1 from column to column, 2 along both. Two colours, phase and noise are random, so
    that no pixel tells the class.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (size,), generator=generator)
    row, column = torch.arange(20.0)[:, None], torch.arange(12.0)
    along = torch.stack([row + 0 * column, 0 * row + column, row + column])[labels]
    phase = 4 * torch.rand(size, 1, 1, generator=generator)
    wave = ((along + phase) // 2 % 2)[:, None]
    one, other = torch.rand(2, size, 3, 1, 1, generator=generator)
    images = one * wave + other * (1 - wave) + 0.1 * torch.randn(size, 3, 20, 12, generator=generator)
    return (255 * images.clamp(0, 1)).to(torch.uint8), labels
