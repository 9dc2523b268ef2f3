"""Prefetching: the next item is made while the current one is in use."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T]) -> Generator[T]:
    """Yield the same items, each made in one background thread while the one before is in use.

    An exception of ``items`` is raised in place of the item that it belongs to. The thread ends with the last item,
    with an exception, or with ``close()``. ``close()`` and the end of the interpreter wait for the item that is being
    made.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        ahead = thread.submit(list, islice(items, 1))
        while item := ahead.result():
            ahead = thread.submit(list, islice(items, 1))
            yield item[0]
