"""The launcher's store on a machine that fell silent: one reason, whichever thread notices, and waits that name it."""

import sys
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from counterflow.transport import ChannelError
from counterflow.transport.control import ControlThread, StopConsensus, Watchdog
from counterflow.transport.keepalive import SILENCE
from counterflow.transport.rendezvous import AgentStore, LauncherStore, SilentStoreError

REASON = (
    rf"no answer from the launcher's store at 127.0.0.1:\d+ for {SILENCE:g} s: its machine is down, or the link to it"
)


@pytest.fixture
def store() -> AgentStore:
    return AgentStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=20))


def fall_silent(store: Any) -> None:
    """The first call ends as the kernel ends the connection, later ones as those of a connection that has ended."""
    reasons = iter(["Connection timed out"])

    def check(keys: list[str]) -> bool:
        raise RuntimeError(next(reasons, "Broken pipe"))

    store.check = check


def test_later_calls_have_the_reason_of_the_first(store: AgentStore) -> None:
    launcher = LauncherStore(store, 1)
    fall_silent(store)
    for asked in (launcher, launcher.with_prefix("attempt"), launcher):
        with pytest.raises(SilentStoreError, match=rf"^rank 1: {REASON}$"):
            asked.has("key")


def test_a_call_that_fails_first_on_another_thread_has_it_too(store: Any) -> None:
    """A call waits for the connection until another one, which has seen the silence, is over."""
    launcher = LauncherStore(store, 1)

    def check(keys: list[str]) -> bool:
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("Broken pipe")
        time.sleep(0.05)
        raise RuntimeError("Connection timed out")

    store.check = check
    other = threading.Thread(target=ask, args=(launcher,))
    other.start()
    with pytest.raises(SilentStoreError):
        launcher.has("key")
    other.join(10)


def ask(launcher: LauncherStore) -> None:
    with pytest.raises(SilentStoreError):
        launcher.has("key")


def test_a_store_that_ended_is_another_matter(store: Any) -> None:
    store.check = lambda keys: (_ for _ in ()).throw(RuntimeError("Connection reset by peer"))
    with pytest.raises(
        ChannelError, match=r"store at 127.0.0.1:\d+ does not answer \(Connection reset by peer\)"
    ) as error:
        LauncherStore(store, 1).has("key")
    assert not isinstance(error.value, SilentStoreError)


def test_a_lost_rank_and_a_silent_store_are_both_named(store: AgentStore) -> None:
    """The rank may be lost for the same reason, or have ended because of it."""
    launcher, lost = LauncherStore(store, 1), ChannelError("rank 1: waiting for a message: lost rank 0")
    assert launcher.cause(lost) is lost
    fall_silent(store)
    assert str(launcher.cause(lost)).startswith(f"{lost}; no answer from the launcher's store at ")


def test_a_store_that_stands_still_does_not_hold_up_the_end(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[LauncherStore.__module__], "SILENCE", -0.8)
    store.check = lambda keys: time.sleep(10)
    lost, start = ChannelError("lost rank 0"), time.monotonic()
    assert LauncherStore(store, 1).cause(lost) is lost
    assert time.monotonic() - start < 5


def test_waits_end_and_say_what_for(store: AgentStore) -> None:
    fall_silent(store)
    watchdog = Watchdog(20)
    stop = StopConsensus(1, watchdog, lambda signal: None)
    control = ControlThread(LauncherStore(store, 1), 2, stop, watchdog, lambda: "")
    with pytest.raises(ChannelError, match=rf"^rank 1: waiting for a message: {REASON}$"):
        watchdog.wait(lambda: False, "rank 1: waiting for a message")
    control.close()


def test_a_store_in_memory_has_no_connection() -> None:
    launcher = LauncherStore(HashStore(), 0)
    assert not launcher.has("key")
    assert launcher.cause(ChannelError("lost")).args == ("lost",)
