"""How many bytes are held: every storage counts once and as a whole, however many tensors of it are held."""

from collections import deque

from torch import UntypedStorage


class CheckpointCommitter:
    """`hold` is for one thread; `drop` for any, and for destructors, which run in the midst of anything."""

    def __init__(self) -> None:
        self.peak = 0
        """Bytes at the moment when most were held."""
        self._live = 0
        self._holders: dict[int, tuple[int, int]] = {}
        """Of every storage: how many hold it, and its bytes."""
        self._dropped: deque[int] = deque()

    @property
    def live(self) -> int:
        """Bytes that are held now."""
        self._settle()
        return self._live

    def hold(self, storage: UntypedStorage) -> int:
        """The key with which ``storage`` is dropped, once for every time that it was held, before it is gone."""
        self._settle()
        key: int = storage._cdata
        holders, nbytes = self._holders.get(key, (0, 0))
        if not holders:
            nbytes = storage.nbytes()
            self._live += nbytes
            self.peak = max(self.peak, self._live)
        self._holders[key] = holders + 1, nbytes
        return key

    def drop(self, key: int) -> None:
        self._dropped.append(key)

    def _settle(self) -> None:
        while self._dropped:
            key = self._dropped.popleft()
            holders, nbytes = self._holders.pop(key)
            if holders > 1:
                self._holders[key] = holders - 1, nbytes
            else:
                self._live -= nbytes
