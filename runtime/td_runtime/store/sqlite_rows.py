"""Rows of the SQLite dialect as records."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from td_runtime.store import sqlite_text as sql
from td_runtime.store.records import Run, RunError, RunSummary, Status

__all__ = ["decode_tags", "encode_error", "encode_tags", "runs", "summaries", "to_run"]

_STATUSES = {str(status): status for status in Status}  # far cheaper than calling the enum
_decode_error = msgspec.json.Decoder(RunError).decode
_decode_tags = msgspec.json.Decoder(tuple[str, ...]).decode
_encode = msgspec.json.Encoder().encode


def encode_error(error: RunError | None) -> bytes | None:
    """Write an error as JSON text."""
    return None if error is None else _encode(error)


def encode_tags(tags: tuple[str, ...]) -> str | None:
    """Write tags as a JSON list; none at all is NULL."""
    return _encode(tags).decode() if tags else None


def decode_tags(text: str | None) -> tuple[str, ...]:
    """Read what `encode_tags` wrote."""
    return _decode_tags(text) if text else ()


def runs(connection: sqlite3.Connection, seqs: Iterable[int]) -> list[Run]:
    """Read the runs with these numbers, which must be there."""
    return [to_run(connection.execute(sql.SELECT_BY_SEQ, (seq,)).fetchone()) for seq in seqs]


def summaries(connection: sqlite3.Connection, seqs: Iterable[int]) -> list[RunSummary]:
    """Read what lists show of the runs with these numbers, which must be there."""
    return [_to_summary(connection.execute(sql.SUMMARY, (seq,)).fetchone()) for seq in seqs]


def to_run(row: tuple[Any, ...]) -> Run:
    """Make a run of the columns `COLUMNS`."""
    facts = dict(zip(sql.COLUMNS, row, strict=True))
    facts["status"] = _STATUSES[facts["status"]]
    facts["tags"] = decode_tags(facts["tags"])
    if facts["error"] is not None:
        facts["error"] = _decode_error(facts["error"])

    return Run(**facts)


def _to_summary(row: tuple[Any, ...]) -> RunSummary:
    facts = dict(zip(sql.SUMMARY_COLUMNS, row, strict=True))
    facts["status"] = _STATUSES[facts["status"]]
    facts["tags"] = decode_tags(facts["tags"])

    return RunSummary(**facts)
