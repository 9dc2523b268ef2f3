"""How the ranks of one attempt at a run find each other in a store that holds what earlier attempts left there.

torchrun's agent keeps its store when it restarts all ranks, and the agents of several nodes may count restarts
differently. So every rank says hello with a word of its own, and is answered by the first rank that is there now.
"""

import time
import uuid

from torch.distributed.distributed_c10d import Store

from counterflow.transport.channel import ChannelError

_PAUSE = 0.01
"""Seconds between looks."""


def join(store: Store, rank: int, size: int, timeout: float) -> str:
    """The prefix of all keys of ``store`` that belong to this attempt. `ChannelError` if not all came within
    ``timeout`` s."""
    deadline = time.monotonic() + timeout
    name = uuid.uuid4().hex
    if rank == 0:
        _welcome(store, name, size, deadline, timeout)
    else:
        word, name = name, ""
        store.set(f"hello/{rank}", word)
        while not name:
            if store.check([f"welcome/{word}"]):
                name = store.get(f"welcome/{word}").decode()
            elif time.monotonic() > deadline:
                raise ChannelError(f"rank {rank}: rank 0 did not come within {timeout:g} s (engine.timeout)")
            else:
                time.sleep(_PAUSE)
        store.set(f"joined/{name}/{rank}", "")
    return name


def _welcome(store: Store, name: str, size: int, deadline: float, timeout: float) -> None:
    missing, answered = set(range(1, size)), set[bytes]()
    while missing:
        for rank in sorted(missing):
            if store.check([f"joined/{name}/{rank}"]):
                missing.remove(rank)
            elif store.check([f"hello/{rank}"]) and (word := store.get(f"hello/{rank}")) not in answered:
                answered.add(word)  # perhaps of an earlier attempt: then nobody reads the answer
                store.set(f"welcome/{word.decode()}", name)
        if missing and time.monotonic() > deadline:
            raise ChannelError(
                f"rank 0: ranks {', '.join(map(str, sorted(missing)))} did not come within {timeout:g} s "
                "(engine.timeout)"
            )
        time.sleep(_PAUSE)
