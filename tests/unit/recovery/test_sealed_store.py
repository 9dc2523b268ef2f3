"""Launcher's store that strangers reach too: what ranks with a secret believe of it."""

import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from counterflow.recovery.recoverable import RecoverableCommunicator, connect_recoverable
from counterflow.recovery.sealed_store import SealedStore, check_same_secret
from counterflow.recovery.supervisor import SupervisedRank
from counterflow.transport import ChannelError
from counterflow.transport.rendezvous import LauncherStore
from counterflow.transport.shared_secret import RunKey

KEY = RunKey(b"run", b"a secret of 16 bytes or more")


def sealed(store: LauncherStore, key: RunKey = KEY) -> SealedStore:
    return SealedStore(store, key)


@pytest.fixture
def plain() -> LauncherStore:
    return LauncherStore(dist.HashStore(), 0, "run/")


@pytest.mark.parametrize("value", [b"", b"\0binary\xff", "text"])
def test_values_of_a_rank_are_those_of_another(plain: LauncherStore, value: str | bytes) -> None:
    sealed(plain).set("key", value)
    assert sealed(plain).get("key") == (value.encode() if isinstance(value, str) else value)
    assert sealed(plain).has("key")
    assert not sealed(plain).has("other")


def test_only_what_a_rank_wrote_at_this_key_is_believed(plain: LauncherStore) -> None:
    store = sealed(plain)
    store.set("one", b"value")
    genuine = plain.get("one")
    forged = {
        "a plain value": b"value",
        "nothing": b"",
        "that of another key": genuine,
        "another value": genuine[:-1] + b"f",
        "one cut short": genuine[:-1],
    }
    for name, value in forged.items():
        plain.set("two", value)
        with pytest.raises(ChannelError, match=r"^rank 0: the launcher's store holds a two that no rank with this eng"):
            print(name, store.get("two"))
    sealed(plain, RunKey(b"another run", b"a secret of 16 bytes or more")).set("two", b"value")
    with pytest.raises(ChannelError):
        store.get("two")
    assert store.get("one") == b"value"
    below = store.with_prefix("below")
    below.set("key", b"value")
    plain.set("key", plain.get("below/key"))
    assert below.get("key") == b"value"
    with pytest.raises(ChannelError):
        store.get("key")


class Marker:
    """A value whose unpickling leaves a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._path),)


class Ranks:
    """Communicators of the ranks of one run, each connected on a thread of this process, on one store."""

    def __init__(self) -> None:
        self.store = dist.HashStore()
        self._made: list[RecoverableCommunicator] = []

    def connect(self, *secrets: bytes | None, timeout: float = 5) -> list[RecoverableCommunicator | ChannelError]:
        """Connect a rank for each of ``secrets``; the communicator of each, or its error."""
        found: dict[int, RecoverableCommunicator | ChannelError] = {}

        def one(rank: int, secret: bytes | None) -> None:
            supervised = SupervisedRank(0, None, lambda attempt: None)
            try:
                comm = connect_recoverable(
                    self.store, len(secrets), supervised, rank=rank, timeout=timeout, on_stop=lambda signal: None,
                    replay_bytes=0, secret=secret,
                )  # fmt: skip
                self._made.append(comm)
                found[rank] = comm
            except ChannelError as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=item) for item in enumerate(secrets)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [found[rank] for rank in range(len(secrets))]

    def close(self) -> None:
        for comm in self._made:
            comm.close()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.close()


ONE, OTHER = b"one secret of all ranks", b"the secret of another job"


@pytest.mark.parametrize("secret", [ONE, None])
def test_ranks_with_one_secret_gather(ranks: Ranks, secret: bytes | None) -> None:
    first, second = ranks.connect(secret, secret)
    assert isinstance(first, RecoverableCommunicator)
    assert isinstance(second, RecoverableCommunicator)
    assert second.gather({"a": 1}, "values") is None
    assert first.gather([2], "values") == [[2], {"a": 1}]


@pytest.mark.parametrize(("first", "second"), [(ONE, OTHER), (ONE, None), (None, ONE)])
def test_ranks_with_different_secrets_end_at_once(ranks: Ranks, first: bytes | None, second: bytes | None) -> None:
    start = time.monotonic()
    errors = ranks.connect(first, second)
    assert time.monotonic() - start < 4, "before engine.timeout"
    assert [str(error) for error in errors] == [
        f"rank {rank}: rank {1 - rank} did not prove that it has the same secret: engine.secret_file has to hold the "
        "same on all ranks"
        for rank in (0, 1)
    ]


def test_the_proofs_of_a_rank_are_no_one_elses(plain: LauncherStore) -> None:
    """A rank that is a stranger repeats what the others left."""
    check_same_secret(plain, 1, KEY, 1)
    plain.set("secret/1", plain.get("secret/0"))
    with pytest.raises(ChannelError, match="rank 1 did not prove"):
        check_same_secret(plain, 2, KEY, 1)


def test_a_rank_that_leaves_no_proof(plain: LauncherStore) -> None:
    with pytest.raises(ChannelError, match=r"^rank 0: rank 1 did not come within 0.1 s \(engine.timeout\)$"):
        check_same_secret(plain, 2, KEY, 0.1)


@pytest.mark.parametrize("secret", [ONE, None])
def test_what_a_stranger_leaves_in_the_store_is_not_unpickled(
    ranks: Ranks, secret: bytes | None, tmp_path: Path
) -> None:
    """Without a secret it is: this is what the secret is for."""
    first, second = ranks.connect(secret, secret)
    assert isinstance(first, RecoverableCommunicator)
    assert isinstance(second, RecoverableCommunicator)
    attempt = first._store._prefix
    stranger = LauncherStore(ranks.store, 9, attempt)
    stranger.set("gather/values/1/0", pickle.dumps(Marker(tmp_path / "executed")))
    stranger.set("gather/values/1", "1")
    if secret is None:
        first.gather(None, "values")
    else:
        with pytest.raises(ChannelError, match=r"holds a gather/values/1 that no rank with this engine.secret_file"):
            first.gather(None, "values")
    assert (tmp_path / "executed").exists() == (secret is None)
