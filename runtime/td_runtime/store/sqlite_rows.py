"""Rows of the SQLite dialect as records."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from td_runtime.store import sqlite_text as sql
from td_runtime.store.records import Run, RunError, RunSummary, Status

__all__ = ["decode_tags", "encode_error", "encode_tags", "runs", "summaries", "to_run"]

_STATUSES = {str(status): status for status in Status}  # far cheaper than calling the enum
_STATUS, _TAGS, _ERROR = map(sql.COLUMNS.index, ("status", "tags", "error"))
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


def runs(connection: sqlite3.Connection, seqs: Sequence[int]) -> list[Run]:
    """Read the runs with these numbers, which must be there, in this order."""
    return [to_run(row) for row in connection.execute(sql.SELECT_BY_SEQS, _list(seqs))]


def summaries(connection: sqlite3.Connection, seqs: Sequence[int]) -> list[RunSummary]:
    """Read what lists show of the runs with these numbers, which must be there, in this order."""
    return [_to_summary(row) for row in connection.execute(sql.SUMMARIES, _list(seqs))]


def to_run(row: tuple[Any, ...]) -> Run:
    """Make a run of the columns `COLUMNS`."""
    facts = _read(row)
    if facts[_ERROR] is not None:
        facts[_ERROR] = _decode_error(facts[_ERROR])

    return Run(*facts)


def _to_summary(row: tuple[Any, ...]) -> RunSummary:
    return RunSummary(*_read(row))


def _read(row: tuple[Any, ...]) -> list[Any]:
    facts = list(row)
    facts[_STATUS] = _STATUSES[facts[_STATUS]]
    facts[_TAGS] = decode_tags(facts[_TAGS])

    return facts


def _list(seqs: Sequence[int]) -> tuple[str]:
    return (_encode(seqs).decode(),)
