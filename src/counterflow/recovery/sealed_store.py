"""Launcher's store in which ranks with a shared secret believe only what they have written themselves."""

import time

from counterflow.transport.channel import ChannelError
from counterflow.transport.rendezvous import LauncherStore
from counterflow.transport.shared_secret import PROOF_BYTES, RunKey


class SealedStore(LauncherStore):
    """Adds a proof to every value, and checks it before the value is used: a stranger who reaches the store can end the
    run, but not have a rank unpickle or act on what it wrote."""

    def __init__(self, store: LauncherStore, key: RunKey) -> None:
        """Use the keys of ``store``, and the run's ``key`` for proofs."""
        super().__init__(store._store, store.rank, store._prefix)
        self._key = key

    def with_prefix(self, prefix: str) -> "SealedStore":
        return SealedStore(super().with_prefix(prefix), self._key)

    def set(self, key: str, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        super().set(key, self._key.proof(self._purpose(key), content) + content)

    def get(self, key: str) -> bytes:
        """Value of ``key``, which must be there. Raises `ChannelError` if no rank of the run wrote it."""
        sealed = super().get(key)
        proof, content = sealed[:PROOF_BYTES], sealed[PROOF_BYTES:]
        if not self._key.proves(proof, self._purpose(key), content):
            raise ChannelError(
                f"rank {self.rank}: the launcher's store holds a {key} that no rank with this engine.secret_file wrote"
            )
        return content

    def _purpose(self, key: str) -> str:
        return f"value of {self._prefix}{key}"


def check_same_secret(store: LauncherStore, size: int, key: RunKey, timeout: float) -> None:
    """Check that all ranks have the same secret, or none; waits for all of them.

    Args:
        store: Plain store of this attempt at the run.
        size: Number of ranks.
        key: Key of the run as this rank makes it.
        timeout: Seconds to wait for the proofs of the other ranks.

    Raises:
        ChannelError: A rank has another secret, or leaves no proof in time.
    """
    deadline = time.monotonic() + timeout
    store.set(f"secret/{store.rank}", key.proof(f"secret of rank {store.rank}"))
    for rank in range(size):
        if not store.await_key(f"secret/{rank}", deadline):
            raise ChannelError(f"rank {store.rank}: rank {rank} did not come within {timeout:g} s (engine.timeout)")
        if not key.proves(store.get(f"secret/{rank}"), f"secret of rank {rank}"):
            raise ChannelError(
                f"rank {store.rank}: rank {rank} did not prove that it has the same secret: engine.secret_file has to "
                "hold the same on all ranks"
            )
