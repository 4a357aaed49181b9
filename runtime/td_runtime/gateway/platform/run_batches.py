"""Batches: which runs were asked for together."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import string
from collections.abc import Mapping
from typing import Final

import msgspec

from td_runtime.gateway.platform.sessions import now_ms
from td_runtime.gateway.platform.storage import Storage

ID_PREFIX: Final = "batch_"
ID_CHARS: Final = 25
KEPT_MS: Final = 30 * 24 * 3600 * 1000
RUNS_AT_ONCE: Final = 1000
_ALPHABET: Final = string.ascii_lowercase + string.digits


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it is stored."""

    id: str
    run_count: int
    """How many runs it is to have."""
    created_at: int
    """Milliseconds since the epoch."""
    idempotency_key: str | None = None


class RunBatches:
    """All batches. Look-ups read what is committed on the caller's thread, a piece at a time."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._connection = storage.connect_reader()

    def find(self, batch_id: str) -> Batch | None:
        """The batch with this id."""
        return _one(self._connection, "id = ?", batch_id)

    async def runs(self, batch_id: str) -> dict[int, str]:
        """The ids of the batch's runs by index, in order."""
        found: dict[int, str] = {}
        last = -1
        while rows := self._connection.execute(
            'SELECT "index", run_id FROM run_batch_items WHERE batch_id = ? AND "index" > ?'
            ' ORDER BY "index" LIMIT ?',
            (batch_id, last, RUNS_AT_ONCE),
        ).fetchall():
            found.update(rows)
            last = rows[-1][0]
            await asyncio.sleep(0)

        return found

    def batch_of(self, run_id: str) -> str | None:
        """The batch that a run was asked for in, if it was."""
        row = self._connection.execute(
            "SELECT batch_id FROM run_batch_items WHERE run_id = ?", (run_id,)
        ).fetchone()

        return None if row is None else str(row[0])

    async def create(self, run_count: int, idempotency_key: str | None) -> tuple[Batch, bool]:
        """Store a batch, unless its idempotency key is taken: then that batch stands.

        Returns:
            The stored batch, and whether it was there before.
        """
        suffix = "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARS))
        batch = Batch(
            id=ID_PREFIX + suffix,
            run_count=run_count,
            created_at=now_ms(),
            idempotency_key=idempotency_key,
        )

        def write(connection: sqlite3.Connection) -> tuple[Batch, bool]:
            if idempotency_key is not None:
                there = _one(connection, "idempotency_key = ?", idempotency_key)
                if there is not None:
                    return there, True
            connection.execute(
                "INSERT INTO run_batches VALUES (?, ?, ?, ?)",
                (batch.id, batch.run_count, batch.created_at, batch.idempotency_key),
            )
            return batch, False

        return await self._storage.write(write)

    async def add(self, batch_id: str, runs: Mapping[int, str]) -> None:
        """Store the runs of a batch by index; those that are there stay as they are."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR IGNORE INTO run_batch_items VALUES (?, ?, ?)",
                [(batch_id, index, run_id) for index, run_id in runs.items()],
            )

        await self._storage.write(write)

    async def forget_old(self) -> None:
        """Delete batches that nobody will ask for any more, in small steps."""
        before = now_ms() - KEPT_MS

        def write(connection: sqlite3.Connection) -> int:
            return connection.execute(
                'DELETE FROM run_batch_items WHERE (batch_id, "index") IN'
                ' (SELECT batch_id, "index" FROM run_batches JOIN run_batch_items'
                " ON batch_id = id WHERE created_at < ? LIMIT ?)",
                (before, RUNS_AT_ONCE),
            ).rowcount

        while await self._storage.write(write):
            pass
        await self._storage.write(
            lambda connection: (
                connection.execute(
                    "DELETE FROM run_batches WHERE created_at < ?", (before,)
                ).rowcount
            )
        )

    def close(self) -> None:
        """Close the look-up connection."""
        self._connection.close()


def _one(connection: sqlite3.Connection, which: str, value: str) -> Batch | None:
    row = connection.execute(
        f"SELECT id, run_count, created_at, idempotency_key FROM run_batches WHERE {which}",  # noqa: S608  constants
        (value,),
    ).fetchone()
    if row is None:
        return None
    batch_id, run_count, created_at, idempotency_key = row

    return Batch(
        id=batch_id, run_count=run_count, created_at=created_at, idempotency_key=idempotency_key
    )
