"""Access tokens that S2's clients ask for, each with a scope of its own.

Unlike those of the control plane they are named, listed and revoked one by one. The file keeps a
token's hash alone; the token is shown once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from td_runtime.gateway.errors import (
    ConfigInvalidError,
    NameTakenError,
    TokenNotFoundError,
    TokenRefusedError,
)
from td_runtime.gateway.platform.rights import NEVER, NONE, OPERATIONS, Match, Rights
from td_runtime.gateway.platform.storage import Storage

PREFIX: Final = "tdi_"
ID_BYTES_MAX: Final = 96


class Permission(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether a group of operations is allowed, by what they do."""

    read: bool = False
    write: bool = False


class TokenScope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token is for. What is not said is not allowed."""

    basins: Match | None = None
    streams: Match | None = None
    access_tokens: Match | None = None
    op_groups: dict[str, Permission | None] | None = None
    ops: list[str] | None = None

    @property
    def operations(self) -> frozenset[str]:
        """The operations allowed, one by one and in groups."""
        groups = [
            OPERATIONS.get(name, {}).get(kind, ())
            for name, permission in (self.op_groups or {}).items()
            for kind in ("read", "write")
            if permission is not None and getattr(permission, kind)
        ]
        return frozenset(self.ops or ()).union(*groups)


class TokenInfo(msgspec.Struct, frozen=True):
    """A token without its secret."""

    id: str
    scope: TokenScope
    expires_at: datetime | None = None
    auto_prefix_streams: bool | None = False

    def to_rights(self) -> Rights:
        """What its holder may do."""
        scope = self.scope
        streams = scope.streams or NONE
        return Rights(
            scope.operations,
            scope.basins or NONE,
            streams,
            scope.access_tokens or NONE,
            (streams.prefix or "") if self.auto_prefix_streams else "",
            NEVER if self.expires_at is None else self.expires_at.timestamp(),
        )

    def check(self) -> None:
        """Refuse what cannot be issued.

        Raises:
            ConfigInvalidError: The id is no id, nothing is allowed, or a prefix is asked for that
                there is not.
        """
        if not 1 <= len(self.id.encode()) <= ID_BYTES_MAX or "\0" in self.id:
            raise ConfigInvalidError(f"a token's id has 1 to {ID_BYTES_MAX} bytes, no NUL")
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise ConfigInvalidError("`expires_at` names no time zone")
        if not self.scope.operations:
            raise ConfigInvalidError("the scope allows no operation")
        if self.auto_prefix_streams and not (self.scope.streams and self.scope.streams.prefix):
            raise ConfigInvalidError("`auto_prefix_streams` needs a stream prefix in the scope")


class IssuedTokens:
    """Issues, lists, checks and revokes. All of them are kept in memory too."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._infos: dict[str, tuple[bytes, TokenInfo]] = {}
        self._rights: dict[bytes, Rights] = {}
        self._watchers: set[Callable[[], None]] = set()
        connection = storage.connect_reader()
        for key, document in connection.execute("SELECT hash, document FROM issued_tokens"):
            self._remember(key, msgspec.json.decode(document, type=TokenInfo))
        connection.close()

    async def issue(self, info: TokenInfo) -> str:
        """Issue a token; it cannot be had again.

        Raises:
            ConfigInvalidError: It cannot be issued so.
            NameTakenError: There is one of that id.
        """
        info.check()
        if info.id in self._infos:
            raise NameTakenError(f"access token `{info.id}` already exists")
        token = f"{PREFIX}{secrets.token_urlsafe(32)}"
        expires_at = None if info.expires_at is None else info.expires_at.timestamp()
        row = (info.id, _hash(token), msgspec.json.encode(info).decode(), expires_at)
        self._remember(row[1], info)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO issued_tokens VALUES (?, ?, ?, ?)", row)

        def settled(stored: asyncio.Future[None]) -> None:
            if stored.exception() is not None:
                self._forget(info.id)

        stored = self._storage.write(insert)
        stored.add_done_callback(settled)
        # A client that hangs up withdraws nothing: forgotten here and kept in the file, the id
        # could be neither revoked nor issued again.
        await asyncio.shield(stored)

        return token

    async def revoke(self, token_id: str) -> None:
        """Revoke a token; sessions of its holders end.

        Raises:
            TokenNotFoundError: There is none of that id.
        """
        if token_id not in self._infos:
            raise TokenNotFoundError(f"access token `{token_id}` not found")

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM issued_tokens WHERE id = ?", (token_id,))

        await self._storage.write(delete, after=lambda _none: self._forget(token_id))

    async def forget_expired(self) -> None:
        """Delete tokens that expired; their ids are free again."""
        now = time.time()
        for token_id, (key, _) in list(self._infos.items()):
            if self._rights[key].expires_at <= now:
                await self.revoke(token_id)

    def all(self) -> list[TokenInfo]:
        """The tokens by id, those that expired lately included."""
        return [self._infos[token_id][1] for token_id in sorted(self._infos)]

    def identify(self, token: str) -> Rights:
        """What a token allows.

        Raises:
            TokenRefusedError: It is unknown, revoked or expired.
        """
        rights = self._rights.get(_hash(token))
        if rights is None:
            raise TokenRefusedError("the access token is not known, or was revoked")
        if rights.expires_at <= time.time():
            raise TokenRefusedError("the access token has expired")

        return rights

    @contextlib.contextmanager
    def watch(self, on_ended: Callable[[], None]) -> Iterator[None]:
        """Within the block, call ``on_ended`` whenever a token is revoked."""
        self._watchers.add(on_ended)
        try:
            yield
        finally:
            self._watchers.discard(on_ended)

    def _remember(self, key: bytes, info: TokenInfo) -> None:
        self._infos[info.id] = (key, info)
        self._rights[key] = info.to_rights()

    def _forget(self, token_id: str) -> None:
        info = self._infos.pop(token_id, None)
        if info is None:  # two revoked it at once
            return
        del self._rights[info[0]]
        for on_ended in list(self._watchers):
            on_ended()


def show(info: TokenInfo) -> dict[str, object]:
    """A token as S2 shows it."""
    shown = {**msgspec.to_builtins(info)}
    if info.expires_at is not None:
        shown["expires_at"] = info.expires_at.astimezone(UTC).isoformat().replace("+00:00", "Z")

    return shown


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
