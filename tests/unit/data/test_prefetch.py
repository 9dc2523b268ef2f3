import subprocess
import sys
import threading
from contextlib import closing

import pytest

from counterflow.data.prefetch import prefetch

WAIT = 30.0
"""Seconds before a test gives up; none waits so long unless it fails."""


class Numbers:
    """0, 1, 2, .. ; ``made[n]`` is set when n is about to be returned, ``threads`` are those that asked."""

    def __init__(self, count):
        self.count = count
        self.n = -1
        self.made = [threading.Event() for _ in range(count)]
        self.threads = set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.current_thread())
        self.n += 1
        if self.n == self.count:
            raise StopIteration
        self.made[self.n].set()
        return self.n


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_same_items_in_order_from_one_thread_that_ends(count):
    numbers = Numbers(count)
    assert list(prefetch(numbers)) == list(range(count))
    assert len(numbers.threads) == 1
    assert threading.main_thread() not in numbers.threads
    assert not any(thread.is_alive() for thread in numbers.threads)


def test_items_that_are_false_are_not_the_end():
    assert list(prefetch(iter([0, None, [], False]))) == [0, None, [], False]


def test_makes_one_item_ahead_and_no_more():
    numbers = Numbers(10)
    with closing(prefetch(numbers)) as items:
        for n in items:
            if n < 9:
                assert numbers.made[n + 1].wait(WAIT)
            # Item n + 2 cannot be on its way: its future is made only when n + 1 is asked for.
            assert numbers.n <= n + 1


def test_the_item_in_use_and_the_next_overlap():
    in_use = threading.Event()

    def items():
        yield 0
        assert in_use.wait(WAIT)  # passes only if the consumer runs while this item is in the making
        yield 1

    with closing(prefetch(items())) as ahead:
        assert next(ahead) == 0
        in_use.set()
        assert next(ahead) == 1


def test_exception_comes_in_place_of_its_item():
    threads = []

    def items():
        threads.append(threading.current_thread())
        yield 0
        yield 1
        raise OSError("disk on fire")

    ahead = prefetch(items())
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="disk on fire"):
        next(ahead)
    assert not threads[0].is_alive()
    with pytest.raises(StopIteration):
        next(ahead)


def test_close_ends_the_thread():
    numbers = Numbers(1000)
    with closing(prefetch(numbers)) as items:
        assert [next(items), next(items)] == [0, 1]
        assert all(thread.is_alive() for thread in numbers.threads)
    assert not any(thread.is_alive() for thread in numbers.threads)
    assert numbers.n <= 2


def test_an_exception_of_the_consumer_ends_the_thread():
    numbers = Numbers(1000)

    def consume():
        with closing(prefetch(numbers)) as items:
            for _ in items:
                raise KeyError("consumer")

    with pytest.raises(KeyError, match="consumer"):
        consume()
    assert not any(thread.is_alive() for thread in numbers.threads)


def test_the_interpreter_ends_though_nobody_closed():
    program = (
        "import itertools\n"
        "from counterflow.data.prefetch import prefetch\n"
        "items = prefetch(itertools.count())\n"
        "print(next(items), next(items))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")
