"""Worker processes that read samples: real deaths, hangs and signals."""

import os
import signal
import time
from itertools import islice

import numpy as np
import pytest
import torch

from counterflow.data.items import Items
from counterflow.data.reader_pool import ReaderError, ReaderPool, Request
from tests.helpers.elastic import alive, children
from tests.helpers.processes import Fresh


class Numbers(Items):
    """Sample i of epoch e is [i, e, process]; some of them end the worker, hang, or cannot be read."""

    dtype, shape = torch.int64, torch.Size((100, 3))

    def __init__(self, fatal=-1, endless=-1, wrong=-1):
        self.fatal, self.endless, self.wrong = fatal, endless, wrong

    def name(self, index):
        return f"numbers[{index}]"

    def read(self, index, epoch):
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.endless:
            time.sleep(1000)
        if index == self.wrong:
            raise OSError("the disk\nis gone")
        return torch.tensor([index, epoch, os.getpid()])


@pytest.fixture
def pool_of():
    pools = []

    def start(count=2, timeout=20.0, **faults):
        pools.append(ReaderPool(count, {"a": Numbers(), "b": Numbers(**faults)}, timeout))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()
        assert not any(alive(pid) for pid in pool.pids)


def requests(count, source="b", epoch=3):
    return [Request(source, np.arange(3 * i, 3 * i + 3), epoch) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_samples_come_in_order(pool_of, count):
    pool = pool_of(count)
    found = list(pool.read(requests(30)))
    assert torch.equal(torch.cat(found)[:, 0], torch.arange(90))
    assert {int(epoch) for epoch in torch.cat(found)[:, 1]} == {3}
    assert {int(pid) for pid in torch.cat(found)[:, 2]} <= set(pool.pids)
    assert len(pool.pids) == count


def test_streams_do_not_disturb_each_other(pool_of):
    pool = pool_of()
    one, other = pool.read(requests(20, "a")), pool.read(requests(20, "b", 4))
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        assert a[0, :2].tolist() == [3 * i, 3]
        assert b[0, :2].tolist() == [3 * i, 4]
    unfinished = pool.read(requests(20))
    next(unfinished)
    unfinished.close()
    assert len(list(pool.read(requests(20)))) == 20


def test_only_some_requests_are_ahead(pool_of):
    taken = []
    stream = pool_of(2).read(taken.append(i) or request for i, request in enumerate(requests(30)))
    list(islice(stream, 5))
    assert len(taken) == 4 + 4


@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_that_cannot_be_read_is_named(pool_of, count):
    stream = pool_of(count, wrong=7).read(requests(10))
    assert len(list(islice(stream, 2))) == 2
    with pytest.raises(ValueError, match=r"^numbers\[7\]: OSError: the disk is gone$"):
        next(stream)


@pytest.mark.parametrize("count", [1, 2])
def test_the_sample_that_killed_a_worker_is_named(pool_of, count):
    start = time.monotonic()
    with pytest.raises(
        ReaderError, match=rf"^data.workers={count}: .* ended \(status -9\) while it read numbers\[7\]$"
    ):
        list(pool_of(count, fatal=7).read(requests(10)))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_that_hangs_is_named(pool_of, count):
    with pytest.raises(ReaderError, match=rf"^data.workers={count}: numbers\[7\] was not read within 1 s$"):
        list(pool_of(count, timeout=1, endless=7).read(requests(10)))


def test_a_dead_pool_says_so_again(pool_of):
    pool = pool_of(fatal=7)
    for _ in range(2):
        with pytest.raises(ReaderError, match="a worker ended"):
            list(pool.read(requests(10)))


def test_workers_outlive_the_signals_that_end_a_run(pool_of):
    pool = pool_of()
    for number in (signal.SIGTERM, signal.SIGINT):
        for pid in pool.pids:
            os.kill(pid, number)
    assert len(list(pool.read(requests(10)))) == 10


def _reads_for_ever(rank, size, store_path):
    pool = ReaderPool(2, {"b": Numbers(endless=7)}, 1000)
    print("begins", flush=True)
    list(pool.read(requests(10)))


def test_no_worker_outlives_its_process():
    with Fresh(1, _reads_for_ever) as run:
        end = time.monotonic() + 60
        while "begins" not in run.text(0, "out"):
            assert time.monotonic() < end, run.texts()
            time.sleep(0.01)
        workers = children(run.pids[0])
        assert len(workers) == 2
        os.kill(run.pids[0], signal.SIGKILL)
        end = time.monotonic() + 5
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < end, "a worker is left"
            time.sleep(0.01)
