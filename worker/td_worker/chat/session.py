"""The session behind a chat, as the control plane and the stream store have it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from td_worker.access_token import session_scopes
from td_worker.chat.mailbox import LastTurn
from td_worker.context import Execution
from td_worker.control_plane import MAIN_CHANNEL
from td_worker.session_calls import ChannelSide, Control
from td_worker.tail import Record

__all__ = ["MainChannel", "last_turn_of"]


class MainChannel:
    """
    A session's own channel; made in the task's context.

    Args:
        chat_id: The session, by either form of its id.
        execution: The attempt that serves it.
    """

    def __init__(self, chat_id: str, execution: Execution) -> None:
        self.chat_id = chat_id
        self.out = ChannelSide(chat_id, MAIN_CHANNEL, "out")
        self._tail = ChannelSide(chat_id, MAIN_CHANNEL, "in").tail()
        self._execution = execution

    async def last_turn(self) -> LastTurn | None:
        """Return what the last turn left on `out`, None before the first."""
        found: LastTurn | None = None
        after: int | None = None
        while records := await asyncio.wrap_future(self.out.records(after)):
            found = last_turn_of(records) or found
            after = records[-1].seq_num

        return found

    async def records(self, after: int | None) -> AsyncIterator[tuple[int, Any]]:
        """Yield number and data of each record of `in` behind `after`, for ever."""
        if after is not None:
            self._tail.resume_after(after)
        while True:
            waiter = self._tail.take()
            record = await asyncio.wrap_future(waiter.future)
            yield record.seq_num, record.data

    async def access_token(self, ttl: float) -> str | None:
        """Return a fresh public access token for its client, valid `ttl` seconds."""
        scopes = session_scopes(self.chat_id)

        return await self._execution.streams.control_plane.public_access_token(scopes, ttl)


def last_turn_of(records: list[Record | Control]) -> LastTurn | None:
    """Return what the last turn-complete among `records` says that names a cursor.

    One without a cursor, of a turn before anything was consumed, still says what to trim to.
    """
    turns = [r for r in records if isinstance(r, Control) and r.subtype == "turn-complete"]
    if not turns:
        return None
    cursors = [turn for turn in turns if "session-in-event-id" in turn.headers]
    headers = cursors[-1].headers if cursors else {}

    return LastTurn(
        seq=turns[-1].seq_num,
        resume_from=_number(headers.get("session-in-event-id")),
        applied_through=_number(headers.get("session-in-consumed-id")),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
