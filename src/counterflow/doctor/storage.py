"""Shared memory, and the folder where runs go."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from counterflow.doctor.bounded import bounded
from counterflow.doctor.check import Check, Status

SHARED_BYTES = 64 * 2**20
"""What Docker gives a container that asks for nothing; more has to be free."""
FREE_BYTES = 10**9
SLOW_SYNC = 0.1
"""Seconds."""

_PATIENCE = 3.0
"""Seconds that a file system may take for one thing."""
_RECORD = b"\0" * 4096


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    advice = "docker run --shm-size=1g, or mount a larger tmpfs: data loaders and NCCL need it"
    try:
        usage = bounded(_PATIENCE, lambda: shutil.disk_usage(folder))
    except OSError as error:
        return Check("shared memory", Status.WARN, f"{folder}: {_reason(error)}", advice)
    found = f"{folder}: {_size(usage.free)} free of {_size(usage.total)}"
    if usage.free <= SHARED_BYTES:
        return Check("shared memory", Status.WARN, found, advice)
    return Check("shared memory", Status.OK, found)


def run_folder(folder: Path) -> Check:
    """Where ``folder`` is not there yet, the nearest folder above it. Leaves nothing behind."""
    try:
        place = bounded(_PATIENCE, lambda: nearest(folder))
        usage = bounded(_PATIENCE, lambda: shutil.disk_usage(place))
        seconds = bounded(_PATIENCE, lambda: _synchronised(place))
    except OSError as error:
        return Check(
            "run folder", Status.WARN, f"{folder}: not writable: {_reason(error)}", "run.dir=, in a folder of your own"
        )
    made = "" if place == folder else f" (to be made in {place.absolute()})"
    found = f"{folder}{made}: {_size(usage.free)} free, fsync takes {1e3 * seconds:.1f} ms"
    if usage.free < FREE_BYTES:
        return Check("run folder", Status.WARN, found, "make room, or run.dir= on another disk")
    if seconds > SLOW_SYNC:
        return Check("run folder", Status.WARN, found, "run.dir= on a local disk: every saved file waits that long")
    return Check("run folder", Status.OK, found)


def nearest(folder: Path) -> Path:
    """``folder``, or the first one above it that exists. Raises ``NotADirectoryError`` where that is a file."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise NotADirectoryError(None, "a file is in its place", str(place))
    return place


def _synchronised(folder: Path) -> float:
    """Seconds of the slowest of three small writes."""
    seconds = 0.0
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(3):
            file.write(_RECORD)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            seconds = max(seconds, time.perf_counter() - start)
    return seconds


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 2**20:.0f} MiB"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
