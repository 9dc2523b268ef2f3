"""Messages between ranks, on a store in this process."""

import time

from torch._C._distributed_c10d import HashStore

from counterflow.doctor.diagnostics import post, take, take_all


def test_messages_in_the_store() -> None:
    store = HashStore()
    post(store, "a/0", {"value": [1, "größer"]})
    post(store, "a/2", 0)
    start = time.monotonic()
    assert take_all(store, "a", [0, 1, 2], 0.05) == {0: {"value": [1, "größer"]}, 2: 0}
    assert take(store, "a/0", start) is None
    assert time.monotonic() - start < 2
