"""C10: what is on the disk tells nothing, and what was put there by others is not believed."""

import json
import os
import pickle
import sqlite3
import stat
import traceback

import pytest

from td_sharedcache import CacheEvent, MintError, Notice, Slot
from td_sharedcache.testing import FrozenClock
from tests.integration.sharedcache.processes import MarkingMinter, database, open_cache

CHAT = Slot.run("run-1", "chat")
OTHER = Slot.run("run-2", "chat")


def rewrite(folder, sql, values):
    """Change the shared file behind the cache's back."""
    with sqlite3.connect(database(folder)) as connection:
        assert connection.execute(sql, values).rowcount == 1
    connection.close()


class Payload:
    """Something whose unpickling leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def planted(tmp_path, caches):
    """Give a cache with a filled slot, the folder, and a second cache that reports events."""
    minter = MarkingMinter(tmp_path)
    events: list[CacheEvent] = []
    held = caches(open_cache(tmp_path, minter)).get_blocking(CHAT)

    def read_again():
        cache = caches(open_cache(tmp_path, minter, on_event=events.append))
        return cache.get_blocking(CHAT), [event.name for event in events]

    return tmp_path, held, read_again


def test_c10_a_pickle_row_is_never_unpickled(planted):
    """CVE-2025-69872: a row of mode 4 is refused and reported, its payload does not run."""
    folder, held, read_again = planted
    trace = str(folder / "executed")
    payload = pickle.dumps(Payload(trace))
    rewrite(folder, "UPDATE Cache SET mode = 4, value = ? WHERE key = ?", (payload, CHAT))

    found, events = read_again()

    assert not os.path.exists(trace)
    assert [name for name in events if name != "credential.shared"][:2] + events[-1:] == [
        "credential.row_refused",
        "credential.row_refused",
        "credential.minted",
    ]
    assert found.id != held.id


def test_c10_a_pickle_file_is_never_opened(planted):
    """A row that points to a file in the folder is refused as well."""
    folder, held, read_again = planted
    trace = str(folder / "executed")
    planted_file = database(folder).parent / "x.val"
    planted_file.write_bytes(pickle.dumps(Payload(trace)))
    rewrite(
        folder,
        "UPDATE Cache SET mode = 4, value = NULL, filename = 'x.val' WHERE key = ?",
        (CHAT,),
    )

    found, events = read_again()

    assert not os.path.exists(trace)
    assert "credential.row_refused" in events
    assert found.id != held.id


@pytest.mark.parametrize(
    "value",
    [
        json.dumps({"type": "live", "credential": {"access_token": "stolen"}}),
        pickle.dumps("x"),
        b"\xff\xfe",
        7,
        None,
        "v1|1.0|AAAA",
    ],
    ids=["json", "blob", "bytes", "number", "null", "forged"],
)
def test_c10_a_foreign_row_is_refused(planted, value):
    """Whatever was planted in the slot's row, it is reported and replaced by a mint."""
    folder, held, read_again = planted
    rewrite(folder, "UPDATE Cache SET value = ? WHERE key = ?", (value, CHAT))

    found, events = read_again()

    assert "credential.row_refused" in events
    assert events[-1] == "credential.minted"
    assert found.id != held.id


def test_c10_text_that_is_not_utf8_is_refused(planted):
    """Bytes declared to be text do not fail the query, they fail the seal."""
    folder, held, read_again = planted
    rewrite(folder, "UPDATE Cache SET value = CAST(? AS TEXT) WHERE key = ?", (b"\xff\xfe", CHAT))

    found, events = read_again()

    assert "credential.row_refused" in events
    assert found.id != held.id


def test_c10_the_row_of_another_slot_is_refused(planted, caches):
    """A row copied from another slot, sealed by ourselves, does not open here."""
    folder, _, read_again = planted
    other = caches(open_cache(folder, MarkingMinter(folder))).get_blocking(OTHER)
    rewrite(
        folder,
        "UPDATE Cache SET value = (SELECT value FROM Cache WHERE key = ?) WHERE key = ?",
        (OTHER, CHAT),
    )

    found, events = read_again()

    assert "credential.row_refused" in events
    assert found.stream == CHAT
    assert found.id != other.id


def test_c10_nothing_on_the_disk_is_in_clear_or_open_to_others(tmp_path, caches):
    """No token, fingerprintable or not, and no key in any file; 0700 and 0600 under umask 0."""
    before = os.umask(0)
    try:
        minter = MarkingMinter(tmp_path)
        cache = caches(open_cache(tmp_path, minter))
        tokens = [cache.get_blocking(slot).access_token for slot in (CHAT, OTHER)]
        cache.evict_blocking(CHAT, cache.get_blocking(CHAT).id, reason="401", refused=True)
    finally:
        os.umask(before)

    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        content = path.read_bytes()
        assert b"tr_dev_key" not in content
        assert not any(token.encode() in content for token in tokens)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in [tmp_path / "cache", *(p for p in (tmp_path / "cache").rglob("*") if p.is_dir())]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_c10_no_secret_in_events_errors_or_reprs(tmp_path, caches):
    """Events, tracebacks and reprs of everything involved carry neither token nor key."""
    events: list[CacheEvent] = []
    notices: list[Notice] = []
    clock = FrozenClock()
    minter = MarkingMinter(tmp_path)
    cache = caches(
        open_cache(
            tmp_path,
            minter,
            clock=clock.clock,
            on_event=events.append,
            on_notice=notices.append,
        )
    )
    held = cache.get_blocking(CHAT)
    clock.advance(11)
    cache.get_blocking(CHAT)
    cache.evict_blocking(CHAT, held.id, reason="401")
    minter.error = MintError("down", status=503)
    with pytest.raises(MintError) as error:
        cache.get_blocking(CHAT)

    shown = "".join(
        traceback.TracebackException.from_exception(error.value, capture_locals=True).format()
    )
    seen = f"{events!r} {notices!r} {held!r} {cache!r} {cache.stats!r} {vars(cache)!r} {shown}"
    assert held.access_token not in seen
    assert "tr_dev_key" not in seen
