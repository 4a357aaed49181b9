"""A worker's pieces with a diary: what each is asked, what it answers, and when."""

from __future__ import annotations

import time
from contextvars import ContextVar
from itertools import count
from urllib.parse import unquote

import httpx

from td_sharedcache import CacheEvent, Credential, CredentialCache, Grant, Slot
from td_worker.control_plane import ControlPlane
from tests.chaos.arena import Board
from tests.chaos.diary import Diary

SLOW_GET = 0.05
"""Seconds from which a wait for a credential is worth a line."""


_mint: ContextVar[int] = ContextVar("chaos_mint")
"""The mint that a PUT is part of: one task runs it from beginning to end."""


class WatchedTransport(httpx.AsyncHTTPTransport):
    """Notes when a PUT leaves this process, and when its answer is here."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self._diary = diary
        self._numbers = count()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        if request.method != "PUT":
            return await super().handle_async_request(request)

        number = next(self._numbers)
        self._diary.note("put.sent", put=number, mint=_mint.get(), slot=_slot_of(request))
        try:
            response = await super().handle_async_request(request)
        except BaseException as error:
            self._diary.note("put.broken", put=number, error=repr(error))
            raise
        self._diary.note("put.answered", put=number, status=response.status_code)

        return response


class WatchedMinter:
    """The control plane as the cache's minter."""

    def __init__(self, plane: ControlPlane, diary: Diary, board: Board, writer: int) -> None:
        self._plane = plane
        self._diary = diary
        self._board = board
        self._writer = writer
        self._numbers = count()

    async def mint(self, slot: Slot) -> Grant:
        """Ask the control plane."""
        number = next(self._numbers)
        self._diary.note("mint.begun", mint=number, slot=slot)
        _mint.set(number)
        self._board.change(self._writer, +1)
        try:
            grant = await self._plane.mint(slot)
        except BaseException as error:
            self._diary.note("mint.ended", mint=number, ok=False, error=repr(error))
            raise
        else:
            self._diary.note("mint.ended", mint=number, ok=True, shown=repr(grant))
        finally:
            self._board.change(self._writer, -1)

        return grant


class WatchedCache:
    """The cache as the streams' source of credentials."""

    def __init__(self, cache: CredentialCache, diary: Diary) -> None:
        self._cache = cache
        self._diary = diary

    def peek(self, slot: Slot) -> Credential | None:
        """Give the credential at hand."""
        return self._cache.peek(slot)

    async def get(self, slot: Slot) -> Credential:
        """Give a credential, and note a wait that could be felt."""
        began = time.time()
        try:
            return await self._cache.get(slot)
        finally:
            if time.time() - began > SLOW_GET:
                self._diary.note("get.ended", slot=slot, began=began)

    async def evict(
        self, slot: Slot, credential_id: str, *, reason: str, refused: bool = False
    ) -> bool:
        """Evict a credential; noted before anybody can act on it."""
        self._diary.note("evict.begun", slot=slot, credential_id=credential_id, reason=reason)

        return await self._cache.evict(slot, credential_id, reason=reason, refused=refused)


def note_event(diary: Diary, event: CacheEvent) -> None:
    """Note what the cache says of itself."""
    # A field of an event may be called like one of the diary's own.
    diary.note(event.name, shown=repr(event), **event.fields)


def _slot_of(request: httpx.Request) -> Slot:
    _, _, _, _, run_id, _, key = request.url.raw_path.decode().split("/")

    return Slot.run(unquote(run_id), unquote(key))
