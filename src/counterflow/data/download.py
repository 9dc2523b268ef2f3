"""Downloads that several ranks may ask for at the same time."""

import tempfile
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path


def download(fetch: Callable[[str], object], root: Path, folder: str, names: Iterable[str]) -> None:
    """Put the files ``names`` into ``folder`` below ``root``, where ``fetch`` puts them below the root it is given.

    ``ValueError`` where that fails.
    """
    try:
        (root / folder).mkdir(parents=True, exist_ok=True)
        # A file appears under its name only when it is whole.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            fetch(scratch)
            for name in names:
                Path(scratch, folder, name).replace(root / folder / name)
    except (OSError, RuntimeError, HTTPException) as error:
        raise ValueError(f"the download failed: {' '.join(str(error).split())}") from error
