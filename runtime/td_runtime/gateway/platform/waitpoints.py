"""Waitpoints: what a run waits for, until a record on a stream or a client completes it."""

import secrets
import sqlite3
import string
from typing import Any, Final, Literal

import msgspec

from td_runtime.gateway.platform.sessions import now_ms
from td_runtime.gateway.platform.storage import Storage

ID_PREFIX: Final = "waitpoint_"
ID_CHARS: Final = 21
KEPT_MS: Final = 30 * 24 * 3600 * 1000
_ALPHABET: Final = string.ascii_lowercase + string.digits
_COLUMNS: Final = (
    "id, run_id, stream, idempotency_key, idempotency_expires_at, tags, timeout_at, created_at,"
    " completed_at, output"
)

Status = Literal["WAITING", "COMPLETED", "TIMED_OUT"]


class Waitpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One waitpoint as it is stored. Times are milliseconds since the epoch."""

    id: str
    run_id: str
    stream: str
    idempotency_key: str | None = None
    idempotency_expires_at: int | None = None
    tags: list[str] = []
    timeout_at: int | None = None
    created_at: int
    completed_at: int | None = None
    output: str | None = None
    """JSON."""

    @property
    def status(self) -> Status:
        """What has become of it by now; a time-out needs nobody to notice it."""
        if self.completed_at is not None:
            return "COMPLETED"
        if self.timeout_at is not None and self.timeout_at <= now_ms():
            return "TIMED_OUT"

        return "WAITING"


class Waitpoints:
    """All waitpoints. Look-ups read what is committed, on the caller's thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._connection = storage.connect_reader()

    def find(self, waitpoint_id: str) -> Waitpoint | None:
        """The waitpoint with this id."""
        return _one(self._connection, "id = ?", waitpoint_id)

    async def create(self, waitpoint: Waitpoint) -> tuple[Waitpoint, bool]:
        """Store a waitpoint, unless its idempotency key is taken: then that waitpoint stands.

        Returns:
            The stored waitpoint, and whether it was there before.
        """

        def write(connection: sqlite3.Connection) -> tuple[Waitpoint, bool]:
            there = _find_by_key(connection, waitpoint)
            if there is not None:
                return there, True
            marks = ", ".join("?" * len(_COLUMNS.split(", ")))
            connection.execute(
                f"INSERT INTO waitpoints VALUES ({marks})",  # noqa: S608  constants
                _to_row(waitpoint),
            )
            return waitpoint, False

        return await self._storage.write(write)

    async def complete(self, waitpoint_id: str, output: str | None) -> None:
        """Complete a waitpoint that waits; one that does not stays as it is."""
        await self._complete("id = ?", waitpoint_id, output)

    async def complete_stream(self, stream: str, output: str) -> None:
        """Complete whatever waits for a record on a stream; costs a look-up when nothing does."""
        if _one(self._connection, "stream = ? AND completed_at IS NULL", stream) is not None:
            await self._complete("stream = ?", stream, output)

    async def forget_old(self) -> None:
        """Delete waitpoints that nobody will ask for any more."""
        before = now_ms() - KEPT_MS
        await self._storage.write(
            lambda connection: (
                connection.execute(
                    "DELETE FROM waitpoints WHERE created_at < ?"
                    " AND (completed_at IS NOT NULL OR timeout_at < ?)",
                    (before, before),
                ).rowcount
            )
        )

    def close(self) -> None:
        """Close the look-up connection."""
        self._connection.close()

    async def _complete(self, which: str, value: str, output: str | None) -> None:
        now = now_ms()
        await self._storage.write(
            lambda connection: (
                connection.execute(
                    "UPDATE waitpoints SET completed_at = ?, output = ?"  # noqa: S608  constants
                    f" WHERE {which} AND completed_at IS NULL"
                    " AND (timeout_at IS NULL OR timeout_at > ?)",
                    (now, output, value, now),
                ).rowcount
            )
        )


def new_waitpoint_id() -> str:
    """An id that no other waitpoint has."""
    return ID_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARS))


def _find_by_key(connection: sqlite3.Connection, new: Waitpoint) -> Waitpoint | None:
    if new.idempotency_key is None:
        return None
    return _one(
        connection,
        "idempotency_key = ? AND (idempotency_expires_at IS NULL OR idempotency_expires_at > ?)",
        new.idempotency_key,
        now_ms(),
    )


def _one(connection: sqlite3.Connection, which: str, *values: object) -> Waitpoint | None:
    row: tuple[Any, ...] | None = connection.execute(
        f"SELECT {_COLUMNS} FROM waitpoints WHERE {which} LIMIT 1",  # noqa: S608  constants
        values,
    ).fetchone()
    if row is None:
        return None
    fields = dict(zip(_COLUMNS.split(", "), row, strict=True))

    return Waitpoint(**{**fields, "tags": msgspec.json.decode(fields["tags"])})


def _to_row(waitpoint: Waitpoint) -> tuple[object, ...]:
    fields = msgspec.structs.asdict(waitpoint)
    fields["tags"] = msgspec.json.encode(fields["tags"]).decode()

    return tuple(fields[name] for name in _COLUMNS.split(", "))
