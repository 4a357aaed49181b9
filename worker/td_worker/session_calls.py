"""
What the async and the plain `def` halves of sessions agree on.

Every call returns a future: its work is done on the worker's runtime loop.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

import msgspec

from td_sharedcache.slot import Slot
from td_worker.context import Execution, current
from td_worker.control_plane import MAIN_CHANNEL, channel_path, segment
from td_worker.encoding import encode_json
from td_worker.errors import (
    ControlPlaneError,
    ControlPlaneRefusedError,
    SessionIdError,
    SessionReadError,
)
from td_worker.session_items import PAGE_SIZE, SessionPage
from td_worker.streams.canonical import known_slot
from td_worker.streams.client import StreamClient
from td_worker.streams.lane import Lane
from td_worker.streams.parts import CONTROL_HEADER, Part
from td_worker.streams.reader import Feed
from td_worker.streams.subscription import Subscription
from td_worker.tail import READ_TIMEOUT, Record, Tail, parse_twice

T = TypeVar("T")

SESSIONS: Final = "/api/v1/sessions"

_CHANNEL: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_DIRECT_ID: Final = re.compile(r"[A-Za-z0-9_-]{7}|[A-Za-z0-9_-]{12}-\d+", re.ASCII)
"""Ids of what a writer has put into the stream itself: the official SDK's, and ours."""

_PART_ID_BYTES: Final = 16
_PART_ID_CHARS: Final = 21
"""As the official SDK's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """
    A control record: no data, but a meaning.

    ```python
    controls = []
    async for token in sessions.open("order-17").out.read(timeout=1, on_control=controls.append):
        ...
    turns = [control.seq_num for control in controls if control.subtype == "turn-complete"]
    ```
    """

    subtype: str
    """For example `turn-complete`."""
    headers: Mapping[str, str]
    """All its headers, `trigger-control` included."""
    seq_num: int
    timestamp: int = 0
    """Milliseconds since the epoch, by the stream store's clock."""


# --- names ---------------------------------------------------------------------------------------


def check_session_id(session_id: str) -> str:
    """
    Return `session_id` when it can be one, of either form.

    Raises:
        SessionIdError: It is no text, empty, too long, or would be a path.
    """
    if not isinstance(session_id, str):
        raise SessionIdError(f"a session id is a string, got {type(session_id).__name__}")
    if not 1 <= len(session_id) <= 256 or session_id != session_id.strip():
        raise SessionIdError(
            f"a session id has 1 to 256 characters and no blanks around, got {session_id[:80]!r}"
        )
    if "/" in session_id or session_id in {".", ".."} or _has_surrogates(session_id):
        raise SessionIdError(
            "a session id is one segment of an address: it must not be '.' or '..' or contain a "
            f"slash or what is no Unicode, got {session_id[:80]!r}"
        )

    return session_id


def check_channel(name: str) -> str:
    """
    Return `name` when it can name a channel of a session.

    Raises:
        SessionIdError: It is not 1 to 128 of letters, digits, '.', '_' and '-', or is "main".
    """
    if not isinstance(name, str) or not _CHANNEL.fullmatch(name) or name in {".", ".."}:
        raise SessionIdError(
            "a channel's name is 1 to 128 letters, digits, '.', '_' or '-', "
            f"got {str(name)[:140]!r}"
        )
    if name == MAIN_CHANNEL:
        raise SessionIdError(
            "'main' is the session's own channel: use `in_` and `out` of the session itself"
        )

    return name


def new_part_id() -> str:
    """Return the id of one append, the same with every try, so that it is stored once."""
    return secrets.token_urlsafe(_PART_ID_BYTES)[:_PART_ID_CHARS]


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


# --- what the control plane keeps ----------------------------------------------------------------


def ask(
    method: str,
    path: str,
    answer: type[T],
    *,
    body: bytes = b"",
    retries_conflict: bool = True,
) -> Future[T]:
    """Start one call; the future has what was answered, as `answer`."""
    client = current().streams

    return client.submit(
        _ask(client, method, path, answer, body=body, retries_conflict=retries_conflict)
    )


def session_path(session_id: str, action: str = "") -> str:
    """Return where a session is kept."""
    return f"{SESSIONS}/{segment(check_session_id(session_id))}{action}"


def close_body(reason: str | None) -> bytes:
    """Return what POST .../close is told."""
    return encode_json({} if reason is None else {"reason": reason})


def page_size_of(page_size: int | None) -> int:
    """
    Return how many sessions to ask for at once.

    Raises:
        ValueError: It is out of its bounds.
    """
    if page_size is not None and not 1 <= page_size <= PAGE_SIZE:
        raise ValueError(f"page_size must be from 1 to {PAGE_SIZE}, got {page_size}")

    return page_size or PAGE_SIZE


def ask_page(query: str) -> Future[SessionPage]:
    """Start asking for one page of a list."""
    return ask("GET", f"{SESSIONS}?{query}", SessionPage)


async def _ask(
    client: StreamClient,
    method: str,
    path: str,
    answer: type[T],
    *,
    body: bytes,
    retries_conflict: bool,
) -> T:
    answered = await client.control_plane.call(
        method, path, body=body, retries_conflict=retries_conflict
    )
    try:
        return msgspec.json.decode(answered, type=answer)
    except msgspec.DecodeError as error:
        raise ControlPlaneRefusedError(
            f"the control plane answered {method} {path} with what is no {answer.__name__}: {error}"
        ) from error


# --- channels ------------------------------------------------------------------------------------


class ChannelSide:
    """
    One direction of one channel of a session, for whichever task uses it.

    Its slot is settled by the first use: all that goes through it keeps one order.
    """

    def __init__(self, session_id: str, channel: str, io: str) -> None:
        self._slot = Slot.session(session_id, channel, io)
        self._settled = False

    @property
    def slot(self) -> Slot:
        """The slot, by the session's canonical id if that is known by now."""
        if not self._settled:
            plane = current().streams.control_plane
            self._slot = known_slot(self._slot, plane) or self._slot
            self._settled = True

        return self._slot

    def execution(self) -> Execution:
        """Return the execution that reads: the caller's."""
        return current()

    def open(self) -> Lane:
        """
        Return a new writer's lane, drained at the end of the run.

        Raises:
            NotInTaskError: No task is running.
        """
        execution = current()

        return execution.streams.open(self.slot, execution.opened)

    def write_control(self, headers: list[tuple[str, str]]) -> Future[int]:
        """Have a control record written; the future has its number."""
        lane = self.open()
        try:
            return lane.control(headers)
        finally:
            lane.close()

    def trim_to(self, seq_num: int) -> Future[int]:
        """Have the records before this number dropped; the future has the command's number."""
        lane = self.open()
        try:
            return lane.trim(seq_num)
        finally:
            lane.close()

    def tail(self) -> Tail:
        """Return the caller's tail of this side."""
        execution = current()
        slot = self.slot

        return execution.tails.get(slot, lambda: self._open_tail(slot, execution.streams))

    def _open_tail(self, slot: Slot, client: StreamClient) -> Tail:
        return Tail(
            slot,
            lambda cursor: client.control_plane.open_session_channel(
                slot, last_event_id=cursor, timeout_s=READ_TIMEOUT
            ),
            client,
        )

    def follow(
        self, *, last_event_id: str | int | None, timeout: float | timedelta, peek_settled: bool
    ) -> Feed:
        """
        Return the parts of this side, to be pulled.

        Raises:
            ValueError: An argument is out of its bounds.
        """
        client, slot = current().streams, self.slot
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
        if not 1 <= seconds <= 600:
            raise ValueError(f"timeout must be from 1 to 600 seconds, got {seconds:g}")
        subscription = Subscription(
            lambda cursor: client.control_plane.open_session_channel(
                slot, last_event_id=cursor, timeout_s=round(seconds), peek_settled=peek_settled
            ),
            last_event_id=check_cursor(last_event_id),
        )

        return client.follow(
            subscription,
            lambda error: SessionReadError(slot, status=error.status, reason=str(error)),
        )

    def send(self, value: Any) -> Future[int | None]:
        """Start appending `value` by the control plane: text as it is, else its JSON."""
        client = current().streams
        body = value.encode() if isinstance(value, str) else encode_json(value)

        return client.submit(_send(client, self.slot, body, new_part_id()))

    def records(self, after: str | int | None) -> Future[list[Record | Control]]:
        """Start asking for what is there by now."""
        client = current().streams

        return client.submit(_records(client, self.slot, check_cursor(after)))

    def forget(self) -> Future[None]:
        """Start dropping the credential at hand: the next write mints another."""
        client = current().streams

        return client.submit(_forget(client, self.slot))


def check_cursor(cursor: str | int | None) -> str | None:
    """
    Return a cursor as the wire has it.

    Raises:
        ValueError: It is no sequence number; a server would read from the beginning.
    """
    if cursor is None:
        return None
    text = str(cursor)
    if not text.isdecimal():
        raise ValueError(f"last_event_id is a sequence number, got {cursor!r}")

    return text


def control_headers(
    subtype: str, headers: Mapping[str, str] | Iterable[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Return the headers of a control record."""
    if not subtype:
        raise ValueError("a control record needs a subtype, such as 'turn-complete'")
    named = cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers

    return [(CONTROL_HEADER, subtype), *named]


def control_of(part: Part) -> Control | None:
    """Return the control record in a part; None for every other part."""
    if part.control is None:
        return None

    return Control(
        subtype=part.control,
        headers=dict(part.headers),
        seq_num=int(part.id),
        timestamp=part.timestamp,
    )


def sort_parts(
    parts: list[Part],
    *,
    on_control: Callable[[Control], object] | None,
    on_part: Callable[[Record], object] | None,
) -> list[Any]:
    """Return the data among `parts`; tell the callbacks of each part, in order."""
    found: list[Any] = []
    for part in parts:
        control = control_of(part)
        if control is not None:
            if on_control is not None:
                on_control(control)
        elif (record := out_record(part)) is not None:
            if on_part is not None:
                on_part(record)
            found.append(record.data)

    return found


def out_record(part: Part) -> Record | None:
    """Return the record in a part of `out`; None without data or number."""
    if not part.has_chunk or not part.id.isdecimal():
        return None

    return Record(
        seq_num=int(part.id),
        data=_plain(part.chunk, part.envelope_id),
        timestamp=part.timestamp,
    )


def _plain(data: Any, envelope_id: str) -> Any:
    # Only what came by the control plane is text in an envelope; a token that a writer has streamed
    # must not turn into a number because it looks like one.
    return data if _DIRECT_ID.fullmatch(envelope_id) else parse_twice(data)


class _Sent(msgspec.Struct):
    ok: bool = True
    seq: int | None = None
    error: str | None = None


class _StoredRecord(msgspec.Struct, rename="camel"):
    seq_num: int
    id: str = ""
    data: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    timestamp: int = 0


class _StoredRecords(msgspec.Struct):
    records: list[_StoredRecord]


async def _send(client: StreamClient, slot: Slot, body: bytes, part_id: str) -> int | None:
    path = f"{channel_path(slot)}/append"
    answered = await client.control_plane.call(
        "POST", path, body=body, headers={"x-part-id": part_id}
    )
    try:
        sent = msgspec.json.decode(answered, type=_Sent)
    except msgspec.DecodeError as error:
        raise ControlPlaneRefusedError(
            f"the control plane answered POST {path} with what is no receipt: {error}. The record "
            "may have been stored"
        ) from error
    if not sent.ok:
        raise ControlPlaneRefusedError(f"{slot} did not take the record: {sent.error}")

    return sent.seq


async def _records(client: StreamClient, slot: Slot, after: str | None) -> list[Record | Control]:
    path = f"{channel_path(slot)}/records" + (f"?afterEventId={after}" if after else "")
    try:
        answered = await client.control_plane.call("GET", path)
        stored = msgspec.json.decode(answered, type=_StoredRecords).records
    except ControlPlaneError as error:
        raise SessionReadError(slot, status=error.status, reason=str(error)) from error
    except msgspec.DecodeError as error:
        reason = f"the control plane answered GET {path} with what is no list of records: {error}"
        raise SessionReadError(slot, status=None, reason=reason) from error

    return [_stored(record) for record in stored]


def _stored(record: _StoredRecord) -> Record | Control:
    headers = dict(record.headers)
    if CONTROL_HEADER in headers:
        return Control(
            subtype=headers[CONTROL_HEADER],
            headers=headers,
            seq_num=record.seq_num,
            timestamp=record.timestamp,
        )

    return Record(
        seq_num=record.seq_num,
        data=_plain(record.data, record.id),
        timestamp=record.timestamp,
    )


async def _forget(client: StreamClient, slot: Slot) -> None:
    credential_id = client.credential_id(slot)
    if credential_id is not None:
        await client.evict(slot, credential_id, reason="reset by the task")
