"""The mailbox, on a dictionary in place of the store."""

import time

from counterflow.doctor.store_mailbox import StoreMailbox


def test_store_mailbox() -> None:
    class Store(dict[str, str]):
        def set(self, key: str, value: str) -> None:
            self[key] = value

        def check(self, keys: list[str]) -> bool:
            return all(key in self for key in keys)

        def get(self, key: str) -> bytes:
            return self[key].encode()

        def delete_key(self, key: str) -> bool:
            return self.pop(key, None) is not None

    mailbox = StoreMailbox(Store())
    mailbox.post("a/0", {"value": [1, "größer"]})
    mailbox.post("a/2", 0)
    start = time.monotonic()
    assert mailbox.take_all("a", [0, 1, 2], 0.05) == {0: {"value": [1, "größer"]}, 2: 0}
    assert mailbox.take("a/0", start) is None
    assert time.monotonic() - start < 2
