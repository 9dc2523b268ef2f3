"""What a process does with memory that it has freed."""

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt, in the GNU C library."""

_NEVER = 2**31 - 1
_AT_ONCE = 64 << 20
_LARGEST = 32 << 20
"""What the library allows; larger blocks always go back to the system."""


@cache
def disable_malloc_trim() -> None:
    """Have this process keep the host memory that it frees, for the activations of the next batch.

    By default the GNU C library returns large blocks to the system, which then hands out pages of zeros, one fault for
    each: with activations of 6 MB that took a quarter of all time. Does nothing where there is another C library.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in ((_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _AT_ONCE), (_M_MMAP_THRESHOLD, _LARGEST)):
            library.mallopt(parameter, value)
