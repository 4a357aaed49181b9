"""The session behind a chat, as the control plane and the stream store have it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import structlog

from td_worker.access_token import session_scopes
from td_worker.chat.mailbox import LastTurn
from td_worker.context import Execution
from td_worker.control_plane import MAIN_CHANNEL
from td_worker.encoding import encode_json
from td_worker.errors import ControlPlaneError
from td_worker.input_calls import taking
from td_worker.session_calls import ChannelSide, Control, session_path
from td_worker.tail import Record

__all__ = ["RUN_HEADER", "MainChannel", "last_turn_of"]

log = structlog.get_logger()

RUN_HEADER: Final = "td-run-id"
"""Of a turn-complete: the run that it ends a turn of. The official clients look at others."""


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
            found = _later(found, last_turn_of(records))
            after = records[-1].seq_num

        return found

    async def records(self, after: int | None) -> AsyncIterator[Record]:
        """Yield each record of `in` behind `after`, for ever."""
        if after is not None:
            self._tail.resume_after(after)
        while True:
            waiter = self._tail.take()
            with taking(self._tail, waiter):
                record = await asyncio.wrap_future(waiter.future)
            yield record

    async def give_back(self, records: list[Record]) -> None:
        """Leave records to whoever reads `in` next in this attempt."""
        await self._tail.restore(records)

    async def access_token(self, ttl: float) -> str | None:
        """Return a fresh public access token for its client, valid `ttl` seconds."""
        scopes = session_scopes(self.chat_id)

        return await self._execution.streams.control_plane.public_access_token(scopes, ttl)

    async def is_replaced(self) -> bool:
        """Say whether another run serves the session by now."""
        try:
            answer = await self._call("GET", "")
            current = msgspec.json.decode(answer, type=_Served).current_run_id
        except (ControlPlaneError, msgspec.DecodeError):
            return False  # a chat without a session of its own is served by whoever does

        return current not in (None, self._execution.run.id)

    async def leave(self, reason: str, cursor: int | None, *, waits: bool) -> bool:
        """
        Have messages that this run leaves behind answered by another; say whether one goes on.

        Args:
            reason: Why the run ends.
            cursor: The number on `in` up to which it has dealt with everything.
            waits: Whether it knows of a message behind that.
        """
        told = {"callingRunId": self._execution.run.id, "reason": reason}
        try:
            if waits:
                answer = await self._call("POST", "/end-and-continue", told)
            else:
                # A message may come between a look and the end of the run: only the control plane,
                # which takes the messages, can look and let the run go at one point.
                answer = await self._call("POST", "/end", told | {"cursor": cursor})
            return msgspec.json.decode(answer, type=_Left).swapped
        except (ControlPlaneError, msgspec.DecodeError) as error:
            if waits:
                log.warning("chat.hand_over_failed", chat_id=self.chat_id, reason=str(error))

        return False

    async def _call(self, method: str, action: str, body: Any = None) -> bytes:
        return await self._execution.streams.control_plane.call(
            method,
            session_path(self.chat_id, action),
            body=b"" if body is None else encode_json(body),
        )


class _Served(msgspec.Struct, rename="camel"):
    current_run_id: str | None = None


class _Left(msgspec.Struct):
    swapped: bool = False


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
        run_id=turns[-1].headers.get(RUN_HEADER),
    )


def _later(found: LastTurn | None, newer: LastTurn | None) -> LastTurn | None:
    """Return what the newer page says, with the older one's cursor if it names none."""
    if found is None or newer is None:
        return newer or found
    if newer.resume_from is not None:
        return newer

    return newer._replace(resume_from=found.resume_from, applied_through=found.applied_through)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
