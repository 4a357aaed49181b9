"""Sessions: which task answers them, which run is theirs now, whether they are closed."""

import secrets
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from td_runtime.gateway.platform.storage import Storage

ID_PREFIX: Final = "session_"
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_RANDOM_CHARS: Final = 15
_COLUMNS: Final = (
    "id, external_id, type, task_identifier, trigger_config, tags, metadata, current_run_id,"
    " current_run_version, closed_at, closed_reason, expires_at, created_at, updated_at"
)

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One session as it is stored. Times are milliseconds since the epoch."""

    id: str
    external_id: str | None
    type: str
    task_identifier: str
    trigger_config: dict[str, Any]
    tags: list[str]
    metadata: dict[str, Any] | None
    current_run_id: str | None = None
    current_run_version: int = 0
    closed_at: int | None = None
    closed_reason: str | None = None
    expires_at: int | None = None
    created_at: int
    updated_at: int

    @property
    def key(self) -> str:
        """The one name that its streams have, whichever of its ids a request used."""
        return self.external_id or self.id

    @property
    def is_closed(self) -> bool:
        """Whether somebody closed it."""
        return self.closed_at is not None

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= now_ms()


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which sessions a list shows; an empty tuple and None do not restrict."""

    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    external_id: str | None = None
    statuses: tuple[str, ...] = ()
    created_from: int | None = None
    created_to: int | None = None


class Page(msgspec.Struct, frozen=True):
    """Sessions, newest first, and the ids to go on from in either direction."""

    sessions: list[Session]
    following: str | None
    previous: str | None


class Sessions:
    """All sessions. Look-ups read what is committed, on the caller's thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._connection = storage.connect_reader()

    def find(self, ref: str) -> Session | None:
        """The session with this id, which is its own or the one it was given by its creator."""
        return _find(self._connection, ref)

    async def create(
        self, session: Session, *, may_change: Callable[[Session], bool] | None = None
    ) -> tuple[Session, bool]:
        """Store a session, unless its external id is taken: then that session stands.

        A session that stands, and is neither closed nor expired, gets the new trigger config.

        Args:
            session: The new one.
            may_change: Whether the session that stands may get it, as it is in the moment of the
                write; called on the writer thread. None: any may.

        Returns:
            The stored session, and whether it is the new one.
        """

        def write(connection: sqlite3.Connection) -> tuple[Session, bool]:
            there = None
            if session.external_id is not None:
                there = _find(connection, session.external_id)
            if there is None:
                marks = ", ".join("?" * len(_COLUMNS.split(",")))
                connection.execute(
                    f"INSERT INTO sessions VALUES ({marks})",  # noqa: S608  constants
                    _to_row(session),
                )
                return session, True
            if there.is_closed or there.is_expired:
                return there, False
            if may_change is not None and not may_change(there):
                return there, False
            fresh = msgspec.structs.replace(
                there, trigger_config=session.trigger_config, updated_at=now_ms()
            )
            return _store(connection, fresh), False

        return await self._storage.write(write)

    async def discard(self, session_id: str) -> None:
        """Forget a session whose first run could not be started."""
        await self._storage.write(
            lambda connection: (
                connection.execute(
                    "DELETE FROM sessions WHERE id = ? AND current_run_id IS NULL", (session_id,)
                ).rowcount
            )
        )

    async def claim(self, session: Session, run_id: str) -> bool:
        """Make ``run_id`` the session's run, if its run is still the one that ``session`` says."""
        row = (run_id, now_ms(), session.id, session.current_run_version)

        return await self._storage.write(
            lambda connection: (
                connection.execute(
                    "UPDATE sessions SET current_run_id = ?, updated_at = ?,"
                    " current_run_version = current_run_version + 1"
                    " WHERE id = ? AND current_run_version = ?",
                    row,
                ).rowcount
                == 1
            )
        )

    async def close_session(self, ref: str, reason: str | None) -> Session | None:
        """Close a session for good; a second time changes nothing."""

        def write(connection: sqlite3.Connection) -> Session | None:
            there = _find(connection, ref)
            if there is None or there.is_closed:
                return there
            now = now_ms()
            closed = msgspec.structs.replace(
                there, closed_at=now, closed_reason=reason, updated_at=now
            )
            return _store(connection, closed)

        return await self._storage.write(write)

    async def update(self, ref: str, **changes: Any) -> Session | None:
        """Change a session's tags or metadata."""

        def write(connection: sqlite3.Connection) -> Session | None:
            there = _find(connection, ref)
            if there is None or not changes:
                return there
            return _store(
                connection, msgspec.structs.replace(there, **changes, updated_at=now_ms())
            )

        return await self._storage.write(write)

    def page(
        self, which: Filter, *, size: int, after: str | None = None, before: str | None = None
    ) -> Page:
        """One page of a list: after one id (older), or before one (newer)."""
        conditions, values = _conditions(which)
        order = "DESC"
        if after is not None:
            conditions.append("id < ?")
            values.append(after)
        if before is not None:
            conditions.append("id > ?")
            values.append(before)
            order = "ASC"
        where = " AND ".join(conditions) or "1"
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM sessions WHERE {where} ORDER BY id {order} LIMIT ?",  # noqa: S608  constants
            [*values, size + 1],
        ).fetchall()
        found = [_from_row(row) for row in rows[:size]]
        is_more = len(rows) > size
        if before is not None:
            found.reverse()

        return _to_page(found, is_more=is_more, is_after=after is not None, before=before)

    def close(self) -> None:
        """Close the look-up connection."""
        self._connection.close()


def new_session_id() -> str:
    """An id that no other session has; later ones sort behind."""
    moment = time.time_ns() // 1_000_000
    stamp = "".join(_ALPHABET[moment >> shift & 31] for shift in range(45, -1, -5))

    return ID_PREFIX + stamp + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_RANDOM_CHARS))


def now_ms() -> int:
    """The time as sessions keep it."""
    return time.time_ns() // 1_000_000


def _to_page(found: list[Session], *, is_more: bool, is_after: bool, before: str | None) -> Page:
    if not found:
        return Page([], None, None)
    has_older = is_more if before is None else True
    has_newer = is_after if before is None else is_more

    return Page(found, found[-1].id if has_older else None, found[0].id if has_newer else None)


def _conditions(which: Filter) -> tuple[list[str], list[object]]:
    conditions: list[str] = []
    values: list[object] = []

    def add(condition: str, *more: object) -> None:
        conditions.append(condition)
        values.extend(more)

    for column, wanted in (("type", which.types), ("task_identifier", which.tasks)):
        if wanted:
            add(f"{column} IN ({', '.join('?' * len(wanted))})", *wanted)
    if which.tags:
        marks = ", ".join("?" * len(which.tags))
        add(
            f"EXISTS (SELECT 1 FROM json_each(tags) WHERE value IN ({marks}))",  # noqa: S608  constants
            *which.tags,
        )
    if which.external_id is not None:
        add("external_id = ?", which.external_id)
    if which.statuses:
        add(f"({_STATUS}) IN ({', '.join('?' * len(which.statuses))})", now_ms(), *which.statuses)
    if which.created_from is not None:
        add("created_at >= ?", which.created_from)
    if which.created_to is not None:
        add("created_at <= ?", which.created_to)

    return conditions, values


_STATUS: Final = (
    "CASE WHEN closed_at IS NOT NULL THEN 'CLOSED' WHEN expires_at <= ? THEN 'EXPIRED'"
    " ELSE 'ACTIVE' END"
)


def _find(connection: sqlite3.Connection, ref: str) -> Session | None:
    column = "id" if ref.startswith(ID_PREFIX) else "external_id"
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE {column} = ?",  # noqa: S608  constants
        (ref,),
    ).fetchone()

    return None if row is None else _from_row(row)


def _store(connection: sqlite3.Connection, session: Session) -> Session:
    marks = ", ".join("?" * len(_COLUMNS.split(",")))
    connection.execute(
        f"REPLACE INTO sessions VALUES ({marks})",  # noqa: S608  constants
        _to_row(session),
    )

    return session


def _to_row(session: Session) -> tuple[object, ...]:
    values = msgspec.structs.asdict(session)
    for name in ("trigger_config", "tags", "metadata"):
        if values[name] is not None:
            values[name] = _encode(values[name]).decode()

    return tuple(values[name] for name in _COLUMNS.split(", "))


def _from_row(row: tuple[Any, ...]) -> Session:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name in ("trigger_config", "tags", "metadata"):
        if values[name] is not None:
            values[name] = _decode(values[name])

    return Session(**values)
