"""Access tokens of the embedded stream store.

A token is random and opaque; the file keeps its SHA-256 alone, so a copy of the file gives
nobody access. Look-ups are cached; expiry is compared at every use and a revocation empties the
cache, so both hold at once.
"""

import contextlib
import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from td_runtime.gateway.errors import PermissionDeniedError, TokenRefusedError
from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.streams import Streams

TOKEN_LIFE_S: Final = 24 * 3600
TOKENS_CACHED: Final = 10_000
# What Trigger.dev asks of S2 for the tokens it hands to writers; reading is not among them.
TOKEN_OPS: Final = ("append", "create-stream", "trim")
# For those who may send to a stream that is read by others: they must not delete its records, nor
# say in theirs that they are somebody else.
SENDER_OPS: Final = ("append",)


class Token(msgspec.Struct, frozen=True):
    """What a token allows: these operations on this one stream, until it expires."""

    slot: str
    stream: str
    ops: frozenset[str]
    expires_at: float
    is_revoked: bool


class Tokens:
    """Issues, checks and ends tokens."""

    def __init__(self, storage: Storage, streams: Streams) -> None:
        self._storage = storage
        self._streams = streams
        self._connection = storage.connect_reader()
        self._cache: dict[bytes, Token] = {}
        self._watchers: set[Callable[[], None]] = set()

    async def issue(
        self,
        *,
        slot: str,
        stream: str,
        ops: tuple[str, ...] = TOKEN_OPS,
        life_s: float = TOKEN_LIFE_S,
    ) -> str:
        """Issue a fresh token for a stream, creating the stream if need be.

        Args:
            slot: Whose token it is, to end it by.
            stream: The stream's name.
            ops: What it allows.
            life_s: Seconds until it expires.

        Returns:
            The token, once it is on disk. It cannot be had again.

        Raises:
            StoreUnavailableError: Nothing was stored.
        """
        token = f"tds_{secrets.token_urlsafe(32)}"
        now = time.time()
        row = (_hash(token), slot, stream, " ".join(ops), now, now + life_s)

        def insert(connection: sqlite3.Connection) -> None:
            self._streams.ensure(connection, stream)
            connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, 0)", row)

        await self._storage.write(insert)
        return token

    def check(self, token: str, *, stream: str) -> Token:
        """The token's rights, after it is found good for ``stream``.

        Raises:
            TokenRefusedError: It is unknown, expired or revoked.
            PermissionDeniedError: It is for another stream.
        """
        rights = self.identify(token)
        if rights.stream != stream:
            raise PermissionDeniedError(f"the access token is not for stream `{stream}`")

        return rights

    def identify(self, token: str) -> Token:
        """The token's rights, whatever they are.

        Raises:
            TokenRefusedError: It is unknown, expired or revoked.
        """
        rights = self._look_up(_hash(token))
        if rights is None:
            raise TokenRefusedError("the access token is not known")
        if rights.is_revoked:
            raise TokenRefusedError("the access token was revoked")
        if rights.expires_at <= time.time():
            raise TokenRefusedError("the access token has expired")

        return rights

    async def expire_all(self, *, slot: str | None = None) -> int:
        """Let all live tokens expire now; returns how many."""
        return await self._end("expires_at = :now", slot)

    async def revoke_all(self, *, slot: str | None = None) -> int:
        """Revoke all live tokens now; returns how many."""
        return await self._end("revoked = 1", slot)

    async def forget_expired(self) -> None:
        """Delete tokens that expired; asking with one is refused as before."""
        now = time.time()
        await self._storage.write(
            lambda connection: (
                connection.execute("DELETE FROM tokens WHERE expires_at < ?", (now,)).rowcount
            )
        )

    @contextlib.contextmanager
    def watch(self, on_ended: Callable[[], None]) -> Iterator[None]:
        """Within the block, call ``on_ended`` whenever tokens are expired or revoked."""
        self._watchers.add(on_ended)
        try:
            yield
        finally:
            self._watchers.discard(on_ended)

    def close(self) -> None:
        """Close the look-up connection."""
        self._connection.close()

    async def _end(self, change: str, slot: str | None) -> int:
        statement = (
            f"UPDATE tokens SET {change} WHERE revoked = 0 AND expires_at > :now"  # noqa: S608  constants above
            " AND (:slot IS NULL OR slot = :slot)"
        )
        parameters = {"now": time.time(), "slot": slot}

        return await self._storage.write(
            lambda connection: connection.execute(statement, parameters).rowcount,
            after=lambda _count: self._note_ended(),
        )

    def _note_ended(self) -> None:
        self._cache.clear()
        for on_ended in list(self._watchers):
            on_ended()

    def _look_up(self, key: bytes) -> Token | None:
        token = self._cache.get(key)
        if token is None:
            token = self._load(key)
        if token is not None:
            self._remember(key, token)

        return token

    def _load(self, key: bytes) -> Token | None:
        row = self._connection.execute(
            "SELECT slot, stream, ops, expires_at, revoked FROM tokens WHERE hash = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        slot, stream, ops, expires_at, revoked = row

        return Token(slot, stream, frozenset(ops.split()), expires_at, bool(revoked))

    def _remember(self, key: bytes, token: Token) -> None:
        self._cache[key] = token
        if len(self._cache) > TOKENS_CACHED:
            del self._cache[next(iter(self._cache))]


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
