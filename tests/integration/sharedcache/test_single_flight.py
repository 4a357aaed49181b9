"""One PUT a slot on a host, whatever the processes do and whoever dies."""

import asyncio
import os
import select
import shutil
import sqlite3
import threading

import pytest

from td_sharedcache import CacheEvent, CredentialBackoffError, MintError, Slot
from tests.integration.sharedcache.processes import (
    Child,
    MarkingMinter,
    database,
    facts,
    open_cache,
    say_when_waiting,
)

CHAT = Slot.run("run-1", "chat")


def test_c1_sixteen_processes_on_a_cold_slot_send_one_put(tmp_path, pipe, caches):
    """C1: caches opened before the fork, all at once, a PUT of 200 ms: one PUT, one id."""
    minter = MarkingMinter(tmp_path, seconds=0.2)
    cache = caches(open_cache(tmp_path, minter))
    ready, go = pipe(), pipe()

    def work():
        ready.say()
        go.wait()
        return cache.get_blocking(CHAT).id

    children = [Child(work) for _ in range(16)]
    ready.wait(16)
    go.say(16)

    assert len({child.result() for child in children}) == 1
    assert minter.count == 1


def test_c1_sixty_four_processes_that_open_at_once_on_a_busy_machine_send_one_put(tmp_path, pipe):
    """C1: opening and asking beside processes that never wait: nobody takes a queue for an end."""
    minter = MarkingMinter(tmp_path, seconds=0.2)
    ready, go, over = pipe(), pipe(), pipe()

    def hog():
        ready.say()
        while not select.select([over.reader], [], [], 0)[0]:
            sum(range(10_000))

    def work():
        ready.say()
        go.wait()
        events: list[str] = []
        cache = open_cache(tmp_path, minter, on_event=lambda event: events.append(event.name))
        return [cache.get_blocking(CHAT).id, events]

    hogs = [Child(hog) for _ in range(4)]
    children = [Child(work) for _ in range(64)]
    ready.wait(68)
    go.say(64)
    found = [child.result() for child in children]
    over.say()
    for child in hogs:
        child.result()

    assert len({id_ for id_, _ in found}) == 1
    assert minter.count == 1
    assert {name for _, names in found for name in names} == {
        "credential.minted",
        "credential.shared",
    }


def test_c1_processes_threads_and_tasks_together_send_one_put(tmp_path, pipe):
    """C1: caches opened after the fork, each used by 4 threads and 50 tasks: one PUT, one id."""
    minter = MarkingMinter(tmp_path, seconds=0.1)
    ready, go = pipe(), pipe()

    async def tasks(cache):
        found = await asyncio.gather(*(cache.get(CHAT) for _ in range(50)))
        return {credential.id for credential in found}

    def work():
        cache = open_cache(tmp_path, minter)
        ids = set()
        threads = [
            threading.Thread(target=lambda: ids.add(cache.get_blocking(CHAT).id)) for _ in range(4)
        ]
        ready.say()
        go.wait()
        for thread in threads:
            thread.start()
        ids |= asyncio.run(tasks(cache))
        for thread in threads:
            thread.join()
        return sorted(ids)

    children = [Child(work) for _ in range(6)]
    ready.wait(6)
    go.say(6)

    assert len({tuple(child.result()) for child in children}) == 1
    assert minter.count == 1


def test_c1_the_row_is_read_again_under_the_lock(tmp_path, caches, monkeypatch):
    """C1: another process mints between the look that finds nothing and the lock: one PUT."""
    minter = MarkingMinter(tmp_path)
    cache = caches(open_cache(tmp_path, minter))
    stripe = cache._shared.stripe
    minted: list[str] = []

    def just_too_late(slot):
        if not minted:
            minted.append(
                Child(lambda: open_cache(tmp_path, minter).get_blocking(CHAT).id).result()
            )
        return stripe(slot)

    monkeypatch.setattr(cache._shared, "stripe", just_too_late)

    assert [cache.get_blocking(CHAT).id] == minted
    assert minter.count == 1


def test_c1_two_slots_of_one_stripe_do_not_share_an_answer(tmp_path, pipe, caches):
    """C1: a process that waited for another slot's mint on the same stripe mints its own."""
    other = next(
        slot
        for slot in (Slot.run(f"run-{n}", "chat") for n in range(2, 100_000))
        if stripe_of(slot) == stripe_of(CHAT)
    )
    started, go, waiting = pipe(), pipe(), pipe()
    minter = MarkingMinter(tmp_path, started=started, go=go)

    def first():
        return open_cache(tmp_path, minter).get_blocking(CHAT).stream

    def second():
        cache = open_cache(tmp_path, minter)
        say_when_waiting(cache, waiting)
        return cache.get_blocking(other).stream

    one = Child(first)
    started.wait()
    two = Child(second)
    waiting.wait()
    go.say(2)

    assert [str(CHAT), str(other)] == [one.result(), two.result()]
    assert minter.count == 2


def stripe_of(slot):
    import hashlib

    return hashlib.blake2b(slot.encode(), digest_size=1).digest()


def test_c2_a_warm_process_needs_no_folder(tmp_path, caches):
    """C2: hits go on while the whole folder is gone."""
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path)))
    held = cache.get_blocking(CHAT)
    shutil.rmtree(tmp_path / "cache")

    assert cache.peek(CHAT) is held
    assert cache.get_blocking(CHAT) is held


def test_a_cache_that_is_made_is_open(tmp_path, caches, monkeypatch):
    """The file is opened when the cache is made, and not in the first call of somebody's task."""
    minter = MarkingMinter(tmp_path)
    cache = caches(open_cache(tmp_path, minter))
    monkeypatch.setattr(sqlite3, "connect", None)

    cache.get_blocking(CHAT)

    assert cache.stats["credential.minted"] == 1
    assert "cache.degraded" not in cache.stats


def test_a_stamp_tells_that_nothing_was_written(tmp_path, caches):
    """Whoever waits reads nothing again as long as the file is old and the same; else it does."""
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path)))
    cache.get_blocking(CHAT)
    store, path = cache._shared, database(tmp_path)

    os.utime(path, (0, 0))
    before = store.stamp()
    assert store.stamp() == before
    cache.get_blocking(Slot.run("run-1", "tools"))
    assert store.stamp() != before
    os.utime(path)
    assert store.stamp() != store.stamp()
    path.unlink()
    assert store.stamp() != store.stamp()


def test_c6_the_lock_of_a_killed_minter_is_free_at_once(tmp_path, pipe, caches):
    """C6: SIGKILL in mid-PUT: the process that waited mints at once, without any time-out."""
    started, never, waiting = pipe(), pipe(), pipe()
    victim = MarkingMinter(tmp_path, started=started, go=never)
    minter = MarkingMinter(tmp_path)

    minting = Child(lambda: open_cache(tmp_path, victim).get_blocking(CHAT).id)
    started.wait()

    def work():
        events: list[CacheEvent] = []
        cache = open_cache(tmp_path, minter, on_event=events.append)
        say_when_waiting(cache, waiting)
        return [cache.get_blocking(CHAT).id, [event.name for event in events]]

    waiter = Child(work)
    waiting.wait()
    minting.kill()

    found, events = waiter.result()
    assert events == ["credential.minted"]
    assert minter.count == 2
    assert found == caches(open_cache(tmp_path, minter)).get_blocking(CHAT).id
    assert minter.count == 2


def test_c6_a_child_forked_in_mid_mint_does_not_keep_the_lock(tmp_path, pipe, caches):
    """C6: the minter dies while a child that it forked in mid-PUT lives on: the lock is free."""
    started, forked, never, leave = pipe(), pipe(), pipe(), pipe()
    victim = MarkingMinter(tmp_path, started=started, go=never)

    def mint_and_fork():
        cache = open_cache(tmp_path, victim)
        threading.Thread(target=lambda: cache.get_blocking(CHAT), daemon=True).start()
        started.wait()
        Child(leave.wait)
        forked.say()
        never.wait()

    minting = Child(mint_and_fork)
    forked.wait()
    minting.kill()

    events: list[CacheEvent] = []
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path), on_event=events.append))
    assert cache.get_blocking(CHAT)
    assert [event.name for event in events] == ["credential.minted"]
    leave.say()


def test_c6_a_child_forked_in_mid_mint_does_not_free_the_lock(tmp_path, pipe):
    """C6: a child closes the inherited lock without unlocking it: its parent still holds it."""
    started, go, waiting = pipe(), pipe(), pipe()
    minter = MarkingMinter(tmp_path, started=started, go=go)

    def mint_and_fork():
        cache = open_cache(tmp_path, minter)
        ids = []
        thread = threading.Thread(target=lambda: ids.append(cache.get_blocking(CHAT).id))
        thread.start()
        started.wait()
        Child(lambda: None).result()
        waiter = Child(wait_for_it)
        waiting.wait()
        assert minter.count == 1
        go.say(2)
        thread.join()
        return [ids[0], waiter.result()]

    def wait_for_it():
        cache = open_cache(tmp_path, minter)
        say_when_waiting(cache, waiting)
        return cache.get_blocking(CHAT).id

    mine, theirs = Child(mint_and_fork).result()
    assert mine == theirs
    assert minter.count == 1


def test_c5_waiters_in_other_processes_get_the_error(tmp_path, pipe, caches):
    """C5: a failed PUT reaches those who waited for it in other processes, with its facts."""
    started, go, waiting = pipe(), pipe(), pipe()
    error = MintError("503 from the control plane", status=503, retryable=True)
    failing = MarkingMinter(tmp_path, error=error, started=started, go=go)

    def work():
        cache = open_cache(tmp_path, failing)
        say_when_waiting(cache, waiting)
        with pytest.raises(MintError) as seen:
            cache.get_blocking(CHAT)
        return facts(seen.value)

    children = [Child(work)]
    started.wait()
    children += [Child(work) for _ in range(3)]
    waiting.wait(3)
    go.say()

    assert [facts(error)] * 4 == [child.result() for child in children]
    assert failing.count == 1
    # The next call tries again.
    assert caches(open_cache(tmp_path, MarkingMinter(tmp_path))).get_blocking(CHAT)
    assert failing.count == 2


def test_c5_the_backoff_is_shared_by_all_processes(tmp_path, caches):
    """C5: after repeated failures in one process, another sends nothing and is told how long."""
    error = MintError("no", status=503, retryable=True, retry_after=60.0)
    minter = MarkingMinter(tmp_path, error=error)

    def fail():
        with pytest.raises(MintError):
            open_cache(tmp_path, minter).get_blocking(CHAT)

    Child(fail).result()

    with pytest.raises(CredentialBackoffError, match="no") as early:
        caches(open_cache(tmp_path, minter)).get_blocking(CHAT)
    assert 50 < early.value.retry_after <= 60
    assert minter.count == 1
