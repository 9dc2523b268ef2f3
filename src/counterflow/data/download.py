"""Downloads that are safe when several ranks start them at the same time."""

import tempfile
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path


def download(fetch: Callable[[str], object], root: Path, folder: str, names: Iterable[str]) -> None:
    """Download the files ``names`` into ``folder`` below ``root``.

    Args:
        fetch: Downloads the files into ``folder`` below the root that is its argument.
        root: Created if it is missing.
        folder: Relative to ``root``.
        names: Files that are moved into place; others are deleted.

    Raises:
        ValueError: If the download fails.
    """
    try:
        (root / folder).mkdir(parents=True, exist_ok=True)
        # A file appears under its name only when it is complete.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            fetch(scratch)
            for name in names:
                Path(scratch, folder, name).replace(root / folder / name)
    except (OSError, RuntimeError, HTTPException) as error:
        raise ValueError(f"the download failed: {' '.join(str(error).split())}") from error
