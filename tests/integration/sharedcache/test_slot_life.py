"""What leaves by itself: slots of finished runs, and namespaces of keys that are gone."""

import os
import shutil
import sqlite3
import time

import pytest

from td_sharedcache import CacheDirectoryError, CacheEvent, CredentialCache, Notice, Policy, Slot
from td_sharedcache.errors import StoreBusyError
from td_sharedcache.seal import Seal
from td_sharedcache.testing import FrozenClock, ScriptedMinter
from tests.integration.sharedcache.processes import (
    Child,
    MarkingMinter,
    database,
    open_cache,
)

CHAT = Slot.run("run-1", "chat")
DAY = 24 * 3600


def ask(folder, sql, *values):
    """Query the shared file behind the cache's back."""
    connection = sqlite3.connect(database(folder))
    with connection:
        found = connection.execute(sql, values).fetchall()
    connection.close()

    return found


def keys(folder):
    return [key for (key,) in ask(folder, "SELECT key FROM Cache ORDER BY rowid")]


def age(folder, seconds):
    """Make every row look as if it had been used so much earlier."""
    ask(folder, "UPDATE Cache SET expire_time = expire_time - ?", seconds)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def make_namespace(folder, key, *, idle):
    """Leave a namespace with one credential behind, last written so many seconds ago."""
    cache = CredentialCache(folder, origin="http://a", api_key=key, minter=ScriptedMinter())
    cache.get_blocking(CHAT)
    cache.close()
    path = folder / Seal(origin="http://a", api_key=key).namespace
    os.utime(path / "cache.db", (time.time() - idle, time.time() - idle))

    return path


def test_the_file_and_the_dict_stay_bounded_over_any_number_of_slots(tmp_path, caches):
    """Slots come and go: rows, entries, lock files and the file's size have an upper bound."""
    policy = Policy(l1_slots=10, l2_slots=50)
    cache = caches(open_cache(tmp_path, ScriptedMinter(), policy=policy))
    sizes = []
    for number in range(600):
        cache.get_blocking(Slot.run(f"run-{number:03}", "chat"))
        sizes.append(database(tmp_path).stat().st_size)

    assert len(keys(tmp_path)) == 50
    assert keys(tmp_path)[-1] == "run/run-599/chat"
    assert list(cache._local.entries) == [Slot.run(f"run-{n}", "chat") for n in range(590, 600)]
    # Some pages more or less; all 600 rows would be seven times as much.
    assert max(sizes[300:]) < 2 * max(sizes[:300])
    assert len(files(tmp_path)) <= 256 + 4


def test_a_slot_in_use_is_not_pushed_out_by_the_finished_ones(tmp_path, caches):
    """A row that somebody reads is marked as used, and those that nobody reads go before it."""
    policy, clock = Policy(l2_slots=5), FrozenClock()
    minter = MarkingMinter(tmp_path)
    cache = caches(open_cache(tmp_path, minter, policy=policy, clock=clock.clock))
    held = cache.get_blocking(CHAT)
    for number in range(10):
        age(tmp_path, 61)
        clock.advance(11)
        assert cache.get_blocking(CHAT) == held
        cache.get_blocking(Slot.run(f"other-{number}", "chat"))

    assert str(CHAT) in keys(tmp_path)
    assert len(keys(tmp_path)) == 5
    assert minter.count == 11


def test_a_row_is_marked_as_used_once_a_minute_at_most(tmp_path, caches):
    """Reading does not write: two looks in one minute leave the file as it is."""
    clock = FrozenClock()
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path), clock=clock.clock))
    cache.get_blocking(CHAT)
    before = ask(tmp_path, "SELECT expire_time FROM Cache")

    clock.advance(11)
    cache.get_blocking(CHAT)
    assert before == ask(tmp_path, "SELECT expire_time FROM Cache")

    age(tmp_path, 61)
    clock.advance(11)
    cache.get_blocking(CHAT)
    assert before <= ask(tmp_path, "SELECT expire_time FROM Cache")


def test_a_mark_that_cannot_be_written_costs_nothing(tmp_path, caches):
    """A look beside somebody who reads gives the credential; the mark is made another time."""
    import fcntl

    clock = FrozenClock()
    cache = caches(open_cache(tmp_path, MarkingMinter(tmp_path), clock=clock.clock))
    held = cache.get_blocking(CHAT)
    age(tmp_path, 61)
    clock.advance(11)
    (locks,) = (tmp_path / "cache").glob("*/locks")

    with open(locks / "store", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert cache.get_blocking(CHAT) == held
        assert cache._local.entries[CHAT][1] == held


def test_rows_from_a_clock_that_was_set_back_go_first(tmp_path, caches):
    """Rows marked as used in the future do not push out what is minted now."""
    cache = caches(open_cache(tmp_path, ScriptedMinter(), policy=Policy(l2_slots=5)))
    for number in range(5):
        cache.get_blocking(Slot.run(f"other-{number}", "chat"))
    age(tmp_path, -7 * DAY)

    cache.get_blocking(CHAT)

    assert keys(tmp_path) == [str(CHAT)]


def test_a_reset_survives_the_bound(tmp_path, caches):
    """C11: what keeps old mints out after a reset is not pushed out by new rows."""
    cache = caches(open_cache(tmp_path, ScriptedMinter(), policy=Policy(l2_slots=3)))
    cache.reset_blocking()
    for number in range(20):
        cache.get_blocking(Slot.run(f"run-{number}", "chat"))

    assert keys(tmp_path)[0] == "reset"


def test_two_environments_on_one_host_never_meet(tmp_path, caches):
    """Origins and keys make namespaces: none of three caches sees another's credential."""
    minters = [ScriptedMinter() for _ in range(3)]
    names = [("http://a", "key-1"), ("http://a", "key-2"), ("http://b", "key-1")]
    each = [
        caches(CredentialCache(tmp_path / "c", origin=origin, api_key=key, minter=minter))
        for (origin, key), minter in zip(names, minters, strict=True)
    ]
    held = [cache.get_blocking(CHAT) for cache in each]

    assert len({credential.id for credential in held}) == 3
    assert [len(minter.slots) for minter in minters] == [1, 1, 1]
    assert len(list((tmp_path / "c").iterdir())) == 3
    assert not each[1].evict_blocking(CHAT, held[0].id, reason="x")
    each[2].reset_blocking()
    assert [len(cache.list_blocking()) for cache in each] == [1, 1, 0]


def test_a_rotated_key_opens_nothing_of_the_old_one(tmp_path, caches):
    """Rotating the key: the old rows are unreadable even when they are put into the new place."""
    old = caches(CredentialCache(tmp_path, origin="o", api_key="old", minter=ScriptedMinter()))
    leaked = old.get_blocking(CHAT)
    old.close()
    (before,) = tmp_path.glob("*/cache.db")
    events: list[CacheEvent] = []
    new = caches(
        CredentialCache(
            tmp_path, origin="o", api_key="new", minter=ScriptedMinter(), on_event=events.append
        )
    )
    (folder,) = (path for path in tmp_path.iterdir() if path != before.parent)
    shutil.copy(before, folder / "cache.db")

    assert new.get_blocking(CHAT).id != leaked.id
    assert next(event.name for event in events) == "credential.row_refused"


def test_a_dead_namespace_is_removed_by_the_next_cache(tmp_path, caches):
    """A day after the last write to it, a rotated key's folder goes; a younger one stays."""
    dead = make_namespace(tmp_path, "rotated long ago", idle=DAY + 60)
    young = make_namespace(tmp_path, "rotated today", idle=DAY - 60)
    assert not dead.exists()
    dead = make_namespace(tmp_path, "rotated long ago", idle=DAY + 60)
    (tmp_path / "notes.txt").touch()

    cache = caches(
        CredentialCache(tmp_path, origin="http://a", api_key="new", minter=ScriptedMinter())
    )
    cache.get_blocking(CHAT)

    assert not dead.exists()
    assert (young / "cache.db").exists()
    assert (tmp_path / "notes.txt").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_namespace_that_somebody_has_open_is_not_removed(tmp_path, caches, pipe):
    """However long nothing was written, a living process's folder stays, and stays the same."""
    opened, leave = pipe(), pipe()

    def hold():
        cache = open_cache(tmp_path, MarkingMinter(tmp_path))
        held = cache.get_blocking(CHAT)
        os.utime(database(tmp_path), (0, 0))
        opened.say()
        leave.wait()
        cache._local.drop_all()
        return [cache.get_blocking(CHAT).id == held.id, cache.stats.get("cache.degraded", 0)]

    child = Child(hold)
    opened.wait()
    folder = database(tmp_path).parent
    caches(CredentialCache(folder.parent, origin="o", api_key="new", minter=ScriptedMinter()))

    assert (folder / "cache.db").exists()
    leave.say()
    assert child.result() == [True, 0]


@pytest.mark.parametrize("lock", ["store", "users", "2a"])
def test_a_namespace_whose_locks_are_held_is_not_removed(tmp_path, caches, lock):
    """Somebody who is only about to open it, or mints in it, keeps it, too."""
    import fcntl

    dead = make_namespace(tmp_path, "old", idle=DAY + 60)

    with open(dead / "locks" / lock, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        caches(CredentialCache(tmp_path, origin="o", api_key="new", minter=ScriptedMinter()))

    assert (dead / "cache.db").exists()


def test_who_comes_while_a_namespace_is_removed_starts_a_new_one(tmp_path, caches, monkeypatch):
    """At the moment of the removal a newcomer is told to wait, and then finds no folder at all."""
    dead = make_namespace(tmp_path, "old", idle=DAY + 60)
    minter, seen = ScriptedMinter(), []
    late = caches(CredentialCache(tmp_path, origin="http://a", api_key="old", minter=minter))
    late.close()
    os.utime(dead / "cache.db", (0, 0))
    rename = os.rename

    def rename_and_look(source, target):
        with pytest.raises(StoreBusyError):
            late._shared.load(CHAT)
        with late._shared.stripe(CHAT) as held:
            seen.append(held)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_and_look)
    caches(CredentialCache(tmp_path, origin="o", api_key="new", minter=ScriptedMinter()))

    assert seen == [False]
    assert not dead.exists()
    assert late.get_blocking(CHAT)
    assert len(minter.slots) == 1
    assert (dead / "cache.db").exists()


def test_what_a_killed_sweeper_left_is_removed(tmp_path, caches):
    """A folder that was renamed and not removed goes at the next look."""
    dead = make_namespace(tmp_path, "old", idle=0)
    left = dead.with_name(f"{dead.name}.removed")
    os.rename(dead, left)

    caches(CredentialCache(tmp_path, origin="o", api_key="new", minter=ScriptedMinter()))

    assert not left.exists()


def test_what_is_shared_can_be_listed_without_its_tokens(tmp_path, caches):
    """list(): every usable credential with its times and its minter's pid; gaps are left out."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    cache = caches(open_cache(tmp_path, minter, clock=clock.clock))
    pid, held = Child(
        lambda: [
            os.getpid(),
            open_cache(tmp_path, minter, clock=clock.clock).get_blocking(CHAT).id,
        ]
    ).result()
    evicted = cache.get_blocking(Slot.run("run-2", "chat"))
    cache.evict_blocking(evicted.slot, evicted.id, reason="x")

    (info,) = cache.list_blocking()

    assert (info.slot, info.id, info.minted_by) == (CHAT, held, pid)
    assert info.minted_at == clock.clock.wall()
    assert info.minted_at < info.refresh_at < info.expires_at
    assert abs(time.time() - info.used_at) < 3600
    assert "token-" not in repr(info)


def test_an_eviction_by_id_from_a_listing_reaches_a_process_without_a_notice(tmp_path, caches):
    """C8: whoever lists and evicts from outside is obeyed by all at their next look."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    worker = caches(open_cache(tmp_path, minter, clock=clock.clock))
    held = worker.get_blocking(CHAT)
    notices: list[Notice] = []
    outside = caches(
        open_cache(tmp_path, ScriptedMinter(), clock=clock.clock, on_notice=notices.append)
    )
    (info,) = outside.list_blocking()

    assert outside.evict_blocking(info.slot, info.id, reason="by hand")
    assert outside.list_blocking() == ()
    clock.advance(10)
    assert worker.get_blocking(CHAT).id != held.id
    assert minter.count == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("below", ["", "namespace", "namespace/locks"])
def test_c10_another_user_s_folder_is_refused_at_every_level(tmp_path, below):
    """C10: neither the folder nor a namespace in it may be somebody else's, who could swap rows."""
    seal = Seal(origin="http://a", api_key="k")
    (tmp_path / "c" / seal.namespace / "locks").mkdir(parents=True)
    for path in [tmp_path / "c", *(tmp_path / "c").rglob("*")]:
        path.chmod(0o700)
    theirs = tmp_path / "c" / below.replace("namespace", seal.namespace)
    os.chown(theirs, 65534, 65534)

    with pytest.raises(CacheDirectoryError, match="belongs to user 65534"):
        CredentialCache(tmp_path / "c", origin="http://a", api_key="k", minter=ScriptedMinter())
