"""Changing runs that are in the store: when they may start, and what they are found by."""

from __future__ import annotations

import sqlite3

from td_runtime.store import sqlite_text as sql
from td_runtime.store.records import Status
from td_runtime.store.sqlite_rows import decode_tags, encode_tags

__all__ = ["add_tags", "reschedule"]


def reschedule(connection: sqlite3.Connection, run_id: str, run_at: float) -> bool:
    """Let a run that is DELAYED start at another time; False when there is none."""
    facts = {"id": run_id, "run_at": run_at, "status": str(Status.DELAYED)}

    return connection.execute(sql.RESCHEDULE, facts).rowcount == 1


def add_tags(connection: sqlite3.Connection, run_id: str, tags: tuple[str, ...]) -> bool:
    """Give a run these tags, too; False when there is no such run."""
    row = connection.execute(sql.TAGS_OF, (run_id,)).fetchone()
    if row is None:
        return False
    seq, text = row
    before = decode_tags(text)
    added = [tag for tag in dict.fromkeys(tags) if tag not in before]
    connection.execute(sql.SET_TAGS, (encode_tags((*before, *added)), seq))
    connection.executemany(sql.ACCEPT_TAG, [(tag, seq) for tag in added])

    return True
