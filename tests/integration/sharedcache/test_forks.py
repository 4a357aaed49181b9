"""Forks at any moment, and deaths on any line."""

import contextlib
import os
import signal
import sqlite3
import sys
import threading

import pytest

import td_sharedcache
from td_sharedcache import CacheEvent, CredentialCache, Slot
from td_sharedcache.locks import FileLocks
from tests.integration.sharedcache.processes import (
    Child,
    MarkingMinter,
    database,
    open_cache,
)

CHAT = Slot.run("run-1", "chat")
OURS = os.path.dirname(td_sharedcache.__file__)
CRITICAL = {"disk.py", "locks.py", "minting.py", "namespaces.py"}


def open_files():
    """Give what this process has open."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue

    return names


def test_a_child_inherits_no_database_connection(tmp_path, caches):
    """Trap 2: after use by two threads, a fork leaves the child without any handle on the file."""
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path)))
    cache.get_blocking(CHAT)
    other = threading.Thread(target=lambda: cache.get_blocking(Slot.run("run-2", "x")))
    other.start()
    other.join()
    assert any(name.endswith("cache.db") for name in open_files())

    assert Child(lambda: [n for n in open_files() if str(tmp_path / "cache") in n]).result() == []


def test_what_a_child_writes_is_seen_by_everybody(tmp_path, caches):
    """Trap 2: two caches in the parent, then a fork: the child's write reaches a third process."""
    minter = MarkingMinter(tmp_path)
    cache, twin = caches(open_cache(tmp_path, minter)), caches(open_cache(tmp_path, minter))
    old = cache.get_blocking(CHAT)
    twin.get_blocking(CHAT)

    def renew():
        cache.evict_blocking(CHAT, old.id, reason="401")
        return cache.get_blocking(CHAT).id

    newer = Child(renew).result()

    assert newer == Child(lambda: open_cache(tmp_path, minter).get_blocking(CHAT).id).result()
    assert minter.count == 2
    with sqlite3.connect(database(tmp_path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_the_parent_goes_on_after_a_fork(tmp_path, caches):
    """The connection that was closed for a fork is opened again when it is needed."""
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path)))
    held = cache.get_blocking(CHAT)

    Child(lambda: None).result()

    assert cache.evict_blocking(CHAT, held.id, reason="x")


def test_a_fork_waits_for_a_thread_that_is_in_the_store(tmp_path, caches):
    """Threads that load and replace without a pause never leave a child something half done."""
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path)))
    stop = threading.Event()

    def churn(name):
        number = 0
        while not stop.is_set():
            number += 1
            cache.get_blocking(Slot.run(f"{name}-{number}", "x"))

    threads = [threading.Thread(target=churn, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    try:
        for number in range(30):
            slot = Slot.run(f"child-{number}", "x")
            assert Child(lambda slot=slot: cache.get_blocking(slot).stream).result() == slot
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_child_starts_without_its_parent_s_flights_and_credentials(tmp_path, pipe, caches):
    """A child forked in mid-mint neither waits for a thread that it does not have nor hangs."""
    started, go = pipe(), pipe()
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path, started=started, go=go)))
    thread = threading.Thread(target=lambda: cache.get_blocking(CHAT))
    thread.start()
    started.wait()

    assert Child(lambda: [len(cache._flights), len(cache._local.entries)]).result() == [0, 0]
    go.say()
    thread.join()


def test_c6_a_child_frees_no_lock_in_whatever_order_it_cleans_up(tmp_path, monkeypatch):
    """C6: a child that drops the holder of a lock before the lock's own hook leaves it locked."""
    locks = FileLocks(tmp_path)
    monkeypatch.setattr(FileLocks, "after_fork_in_child", lambda self: None)
    with contextlib.ExitStack() as holder:
        assert holder.enter_context(locks.hold("users", exclusive=False))

        Child(holder.close).result()

        with FileLocks(tmp_path).hold("users") as held:
            assert not held
    with FileLocks(tmp_path).hold("users") as held:
        assert held


def trace_lines(on_line):
    """Call back on every line of the files whose half-done work another process could see."""

    def trace(frame, event, argument):
        name = os.path.basename(frame.f_code.co_filename)
        if name not in CRITICAL or not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            on_line((name, frame.f_lineno))
        return trace

    sys.settrace(trace)


def live(folder, minter):
    """Mint, evict and mint again."""
    cache = open_cache(folder, minter)
    cache.evict_blocking(CHAT, cache.get_blocking(CHAT).id, reason="401")
    cache.get_blocking(CHAT)


def sweep(folder, minter):
    """Come with another key, and remove what is dead."""
    CredentialCache(folder / "cache", origin="http://a", api_key="another", minter=minter)


def leave_behind(folder, minter):
    """Leave a namespace in which nothing was written for more than a day."""
    cache = open_cache(folder, minter)
    cache.get_blocking(CHAT)
    cache.close()
    os.utime(database(folder), (0, 0))


def deaths(folder, live):
    """Give when to die: at the first and at the last time that each line of a life is run."""

    def work():
        seen: list[tuple[str, int]] = []
        trace_lines(seen.append)
        live(folder, MarkingMinter(folder))
        sys.settrace(None)
        first: dict[tuple[str, int], int] = {}
        last: dict[tuple[str, int], int] = {}
        for number, line in enumerate(seen, 1):
            first.setdefault(line, number)
            last[line] = number
        return sorted({*first.values(), *last.values()})

    return Child(work).result()


def live_and_die(folder, minter, live, number):
    """Live up to the `number`-th line and be killed there."""

    def die(_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        trace_lines(die)
        live(folder, minter)

    left = [number]
    Child(work).end()


@pytest.mark.timeout(300)
def test_c6_a_process_that_dies_on_any_line_leaves_a_usable_store(tmp_path):
    """C6: killed on each line of a life in turn, the next caller has a credential at once."""
    numbers = deaths(tmp_path, live)
    assert len(numbers) > 200

    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        minter = MarkingMinter(folder)
        live_and_die(folder, minter, live, number)

        events: list[CacheEvent] = []
        cache = open_cache(folder, minter, on_event=events.append)
        held = cache.get_blocking(CHAT)
        cache.close()
        again = open_cache(folder, minter, on_event=events.append)
        assert held.id == again.get_blocking(CHAT).id
        again.close()
        names = {event.name for event in events}
        assert names <= {"credential.minted", "credential.shared"}, (number, events)
        connection = sqlite3.connect(database(folder))
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        assert minter.count <= 3


@pytest.mark.timeout(300)
def test_c6_a_process_that_dies_on_any_line_of_a_removal_is_in_nobody_s_way(tmp_path, monkeypatch):
    """Killed in the middle of removing a dead namespace: its key works, the next one goes on."""
    # The lines are the same ones with fewer locks, and it is over sooner.
    monkeypatch.setattr("td_sharedcache.locks.STRIPES", 16)
    leave_behind(tmp_path, MarkingMinter(tmp_path))
    numbers = deaths(tmp_path, sweep)
    assert len(numbers) > 50

    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        minter = MarkingMinter(folder)
        leave_behind(folder, minter)
        live_and_die(folder, minter, sweep, number)

        events: list[CacheEvent] = []
        cache = open_cache(folder, minter, on_event=events.append)
        assert cache.get_blocking(CHAT)
        cache.close()
        assert {event.name for event in events} <= {"credential.minted", "credential.shared"}
        sweep(folder, minter)
        assert not list((folder / "cache").glob("*.removed"))
