"""C9: a folder in trouble costs sharing, never a credential, and heals by itself."""

import fcntl
import os
import resource
import shutil
import sqlite3
from contextlib import closing

import pytest

from td_sharedcache import CacheEvent, CacheUnavailableError, Policy, Slot
from td_sharedcache.testing import FrozenClock
from tests.integration.sharedcache.processes import (
    Child,
    MarkingMinter,
    Pipe,
    database,
    open_cache,
)

CHAT = Slot.run("run-1", "chat")
TOOLS = Slot.run("run-1", "tools")
NOBODY = 65534


def watched(folder, minter, **options):
    """Give a cache and the list of its events' names."""
    events: list[CacheEvent] = []
    cache = open_cache(folder, minter, on_event=lambda e: events.append(e.name), **options)

    return cache, events


def test_c9_a_deleted_folder_is_made_again(tmp_path, caches):
    """C9: the next look after `rm -rf` shares again, and says what happened once."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    cache, events = watched(tmp_path, minter, clock=clock.clock)
    caches(cache).get_blocking(CHAT)
    shutil.rmtree(tmp_path / "cache")
    clock.advance(11)

    held = cache.get_blocking(CHAT)

    assert [n for n in events if n.startswith("cache.")] == ["cache.degraded", "cache.restored"]
    other, _ = watched(tmp_path, minter, clock=clock.clock)
    assert held.id == caches(other).get_blocking(CHAT).id
    assert minter.count == 2


def test_c9_processes_meet_again_in_a_replaced_folder(tmp_path, caches):
    """C9: a process whose folder was replaced under it finds the others' credential in the new."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    cache, _ = watched(tmp_path, minter, clock=clock.clock)
    caches(cache).get_blocking(CHAT)
    shutil.rmtree(tmp_path / "cache")
    newer = Child(
        lambda: open_cache(tmp_path, minter, clock=clock.clock).get_blocking(CHAT).id
    ).result()

    clock.advance(11)

    assert newer == cache.get_blocking(CHAT).id
    assert minter.count == 2


def _zero_header(path):
    with open(path, "r+b") as file:
        file.write(bytes(100))


def _scramble(path):
    with open(path, "r+b") as file:
        file.seek(1024)
        file.write(os.urandom(path.stat().st_size - 1024))


def _cut(path):
    os.truncate(path, 5000)


def _empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [_zero_header, _scramble, _cut, _empty])
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_c9_a_damaged_file_is_set_aside(tmp_path, caches, damage, is_open):
    """C9: what is not a database any more is renamed, and the next mint is shared in a new one."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    cache, events = watched(tmp_path, minter, clock=clock.clock)
    caches(cache).get_blocking(CHAT)
    if not is_open:
        cache.close()
    damage(database(tmp_path))
    clock.advance(11)

    cache.get_blocking(CHAT)

    # SQLite may still have sound pages in memory; whoever reads the file itself sets it aside.
    other, _ = watched(tmp_path, minter, clock=clock.clock)
    found = caches(other).get_blocking(CHAT)
    clock.advance(11)
    assert found.id == cache.get_blocking(CHAT).id
    assert events.count("cache.degraded") == events.count("cache.restored") <= 1
    assert minter.count <= 2


def test_c9_a_file_without_all_its_tables_is_completed(tmp_path, caches):
    """C9: whoever opens a half-made file, or one with other settings, makes it whole, unheard."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    held = caches(open_cache(tmp_path, minter, clock=clock.clock)).get_blocking(CHAT)
    with closing(sqlite3.connect(database(tmp_path))) as connection, connection:
        connection.execute("DROP TRIGGER Settings_count_insert")
        connection.execute("UPDATE Settings SET value = 'least-recently-used' WHERE key LIKE 'ev%'")

    cache, events = watched(tmp_path, minter, clock=clock.clock)
    assert caches(cache).get_blocking(CHAT).id == held.id

    with closing(sqlite3.connect(database(tmp_path))) as connection:
        found = connection.execute("SELECT value FROM Settings WHERE key LIKE 'ev%'").fetchall()
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    assert found == [("none",)]
    assert "Settings_count_insert" in names
    assert events == ["credential.shared"]


def test_c9_opening_a_complete_file_writes_nothing(tmp_path, caches):
    """C9: others open and read while one reads: no lock but the shared one, the file unchanged."""
    minter = MarkingMinter(tmp_path)
    held = caches(open_cache(tmp_path, minter)).get_blocking(CHAT)
    path = database(tmp_path)
    before = path.stat().st_mtime_ns, path.read_bytes()
    (locks,) = (tmp_path / "cache").glob("*/locks")

    with open(locks / "store", "rb") as reading:
        fcntl.flock(reading, fcntl.LOCK_SH)
        cache = caches(open_cache(tmp_path, minter))
        assert cache.get_blocking(CHAT).id == held.id

    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_c9_a_full_disk_costs_sharing_only(tmp_path, caches):
    """C9: when nothing can be written, each credential is minted once a process and kept."""
    caches(open_cache(tmp_path, MarkingMinter(tmp_path))).get_blocking(CHAT)
    size = database(tmp_path).stat().st_size

    def work():
        clock = FrozenClock()
        minter = MarkingMinter(tmp_path)
        cache, _ = watched(tmp_path, minter, clock=clock.clock)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        before = minter.count
        slots = [Slot.run(f"run-{number}", "long" * 500) for number in range(30)]
        for slot in slots:
            cache.get_blocking(slot)
        clock.advance(11)
        ids = {cache.get_blocking(slot).id for slot in slots}
        degraded = cache.stats["cache.degraded"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        clock.advance(11)
        assert ids == {cache.get_blocking(slot).id for slot in slots}
        # As many as went alone have come back, and nothing was minted twice on the way.
        return [minter.count - before, degraded > 0, degraded - cache.stats["cache.restored"]]

    assert Child(work).result() == [30, True, 0]


def test_c9_what_was_minted_alone_is_shared_later(tmp_path, caches):
    """C9: once the store answers again, other processes find the credential without a PUT."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    cache, events = watched(tmp_path, minter, clock=clock.clock, policy=Policy(store_wait=0.0))
    caches(cache)
    (locks,) = (tmp_path / "cache").glob("*/locks")
    with open(locks / "store", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        alone = cache.get_blocking(CHAT)

    assert events == ["cache.degraded", "credential.minted"]
    clock.advance(11)
    assert alone.id == cache.get_blocking(CHAT).id
    assert "cache.restored" in events
    other, _ = watched(tmp_path, minter, clock=clock.clock)
    assert alone.id == caches(other).get_blocking(CHAT).id
    assert minter.count == 1


def test_c9_whoever_holds_the_store_is_seen(tmp_path, pipe, caches):
    """C9: a reader that is stopped with the lock is told from others that come and go."""
    held, leave = pipe(), pipe()
    cache, _ = watched(tmp_path, MarkingMinter(tmp_path))
    (locks,) = (tmp_path / "cache").glob("*/locks")
    assert caches(cache)._shared.idle_holders() is None

    def hold():
        with open(locks / "store", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            held.say()
            leave.wait()

    children = [Child(hold), Child(hold)]
    held.wait(2)

    # They are awake until they wait to leave.
    while cache._shared.idle_holders() != {child.pid for child in children}:
        os.sched_yield()
    leave.say(2)
    for child in children:
        child.result()
    assert cache._shared.idle_holders() is None


@pytest.mark.parametrize(
    ("states", "is_idle"),
    [(["S", "R"], False), (["S", "D"], False), (["S", "T"], True), ([], True), (None, True)],
)
def test_c9_a_holder_that_hides_is_not_taken_for_one_at_work(
    tmp_path, caches, monkeypatch, states, is_idle
):
    """C9: without a look at the holder's threads (containers, `hidepid`) its time is bounded."""
    cache, _ = watched(tmp_path, MarkingMinter(tmp_path))
    (locks,) = (tmp_path / "cache").glob("*/locks")
    for number, state in enumerate(states if states is not None else ["unreadable"]):
        stat = tmp_path / f"{os.getpid()}/task/{number}/stat"
        stat.parent.mkdir(parents=True)
        # A folder cannot be read as a file, whoever asks.
        stat.mkdir() if states is None else stat.write_text(f"1 (a) R b) {state} 1 1")
    monkeypatch.setattr("td_sharedcache.locks._PROCESSES", tmp_path)

    with open(locks / "store", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        seen = caches(cache)._shared.idle_holders()

    assert seen == ({os.getpid()} if is_idle else set())


def test_c9_a_store_that_changes_hands_is_not_down(tmp_path, pipe, caches):
    """C9: others hold the lock one after the other for longer than one may: no degradation."""
    policy = Policy(store_wait=0.5)
    cache, events = watched(tmp_path, MarkingMinter(tmp_path), policy=policy)
    (locks,) = (tmp_path / "cache").glob("*/locks")
    seen = cache._shared.idle_holders
    held = pipe()
    queue: list[tuple[Child, Pipe]] = []
    turns: list[frozenset[int]] = []

    def step_in():
        leave = pipe()

        def hold():
            with open(locks / "store", "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)
                held.say()
                leave.wait()

        queue.append((Child(hold), leave))
        held.wait()

    def step_out():
        child, leave = queue.pop(0)
        leave.say()
        child.result()

    def take_turns():
        """Let another process have the lock before the one that has it is suspected."""
        turns.append(seen())
        if len(turns) < 8:
            step_in()
        step_out()
        return turns[-1]

    step_in()
    cache._shared.idle_holders = take_turns
    assert caches(cache).get_blocking(CHAT)

    assert events == ["credential.minted"]
    assert len(turns) == 8


def test_a_credential_in_use_is_kept_while_the_store_is_busy(tmp_path, caches):
    """A look that cannot be had costs nothing while the credential has not run out."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    cache, events = watched(tmp_path, minter, clock=clock.clock)
    held = caches(cache).get_blocking(CHAT)
    (locks,) = (tmp_path / "cache").glob("*/locks")
    clock.advance(11)

    with open(locks / "store", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cache.get_blocking(CHAT) is held
        assert cache.peek(CHAT) is held
    clock.advance(1.1)
    assert cache.peek(CHAT) is None
    assert cache.get_blocking(CHAT) == held
    assert events == ["credential.minted", "credential.shared"]


def test_c9_a_lock_held_beyond_its_bound_is_not_waited_for(tmp_path, pipe, caches):
    """C9: a stopped minter costs others the bound, then they go alone for that slot only."""
    started, never = pipe(), pipe()
    victim = MarkingMinter(tmp_path, started=started, go=never)
    stopped = Child(lambda: open_cache(tmp_path, victim).get_blocking(CHAT).id)
    started.wait()

    minter = MarkingMinter(tmp_path)
    cache, events = watched(tmp_path, minter, policy=Policy(lock_wait=0.0))
    caches(cache).get_blocking(CHAT)
    assert events == ["lock.timed_out", "cache.degraded", "credential.minted"]

    cache.get_blocking(TOOLS)
    assert events[-1] == "credential.minted"
    assert events.count("cache.degraded") == 1
    stopped.kill()


def test_c9_a_read_only_folder_costs_sharing_only(tmp_path):
    """C9: nothing can even be opened; each process mints for itself and says so once a slot."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)

    def work():
        minter = MarkingMinter(tmp_path)
        if os.geteuid() == 0:
            os.chown(tmp_path, NOBODY, NOBODY)
            os.chown(minter.path, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        open_cache(tmp_path, minter).close()
        for folder in [*(tmp_path / "cache").glob("*/locks"), *(tmp_path / "cache").glob("*")]:
            folder.chmod(0o500)
        cache, events = watched(tmp_path, minter)
        first, again = cache.get_blocking(CHAT), cache.get_blocking(CHAT)
        assert cache.evict_blocking(CHAT, first.id, reason="401") is False
        newer = cache.get_blocking(CHAT)
        for folder in [*(tmp_path / "cache").glob("*"), *(tmp_path / "cache").glob("*/locks")]:
            folder.chmod(0o700)
        return [events, first.id == again.id, newer.id != first.id, minter.count]

    events, same, renewed, mints = Child(work).result()

    assert events[:2] == ["cache.degraded", "credential.minted"]
    assert events.count("cache.degraded") == 1
    assert same
    assert renewed
    assert mints == 2


def test_c9_a_folder_that_became_unsafe_is_not_used(tmp_path, caches):
    """C9, C10: what replaces a deleted folder is checked as strictly as at the start."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    cache, events = watched(tmp_path, minter, clock=clock.clock)
    caches(cache).get_blocking(CHAT)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache").chmod(0o777)
    clock.advance(11)

    held = cache.get_blocking(CHAT)

    assert held
    assert "cache.degraded" in events
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_reset_that_cannot_reach_the_others_says_so(tmp_path, caches):
    """C11: a reset that only this process would obey is an error, not a success."""
    cache, _ = watched(tmp_path, MarkingMinter(tmp_path), policy=Policy(store_wait=0.0))
    caches(cache).get_blocking(CHAT)
    (locks,) = (tmp_path / "cache").glob("*/locks")

    with open(locks / "store", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CacheUnavailableError, match="try again"):
            cache.reset_blocking()
