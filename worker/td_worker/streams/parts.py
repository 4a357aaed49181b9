"""From server-sent events to the parts of a stream: S2's batches, or the events of a v1 stream."""

# msgspec reads the annotations of these classes, so they must not be postponed.
from typing import Any, Final

import msgspec
from httpx_sse import ServerSentEvent

from td_worker.errors import ControlPlaneRefusedError, ControlPlaneUnreachableError
from td_worker.streams.envelope import Envelope, decode_envelope
from td_worker.streams.seen import Seen

CONTROL_HEADER: Final = "trigger-control"
"""The header that makes a record a control record."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One record as a reader sees it."""

    id: str
    """Its sequence number as text; on v1 streams the event's id."""
    chunk: Any = msgspec.UNSET
    """What was written; `UNSET` for control records and bodies that hold no envelope."""
    timestamp: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    envelope_id: str = ""
    """The id in its envelope; empty without one."""

    @property
    def has_chunk(self) -> bool:
        """Say whether it carries data."""
        return self.chunk is not msgspec.UNSET

    @property
    def control(self) -> str | None:
        """What a control record says, such as `turn-complete`; None for all other records."""
        return next((value for name, value in self.headers if name == CONTROL_HEADER), None)


class _Record(msgspec.Struct):
    seq_num: int
    body: str = ""
    timestamp: int = 0
    headers: tuple[tuple[str, str], ...] = ()


class _Batch(msgspec.Struct):
    records: list[_Record] = []


_batches: Final = msgspec.json.Decoder(_Batch)


def parse_event(
    event: ServerSentEvent, *, version: str, cursor: str | None, seen: Seen
) -> tuple[list[Part], str | None]:
    """
    Return the parts in one event, and the cursor after it.

    Raises:
        ControlPlaneError: The stream store broke off, or speaks something else than S2.
    """
    if version == "v1":
        return _parse_v1(event, cursor)
    if event.event == "error":
        # Not a clean end: what follows in the stream would silently be missing.
        raise ControlPlaneUnreachableError(
            f"the stream store broke off: {event.data[:200]}", retryable=True
        )
    if event.event != "batch":
        return [], cursor
    try:
        records = _batches.decode(event.data).records
    except msgspec.DecodeError as error:
        raise ControlPlaneRefusedError(f"a batch is not what S2 would send: {error}") from error
    parts = [part for record in records if (part := _part(record, seen)) is not None]

    # The cursor is always a sequence number: S2's own event id is a triple, on which the server
    # would start again from the beginning.
    return parts, str(records[-1].seq_num) if records else cursor


def _part(record: _Record, seen: Seen) -> Part | None:
    """Return a record's part; None for S2's commands and for what was read before."""
    if record.headers and record.headers[0][0] == "":
        return None
    envelope = (decode_envelope(record.body) if record.body else None) or Envelope()
    if _is_known(envelope, seen):
        return None

    return Part(
        id=str(record.seq_num),
        chunk=envelope.data,
        timestamp=record.timestamp,
        headers=record.headers,
        envelope_id=envelope.id if isinstance(envelope.id, str) else "",
    )


def _is_known(envelope: Envelope, seen: Seen) -> bool:
    return isinstance(envelope.id, str) and bool(envelope.id) and not seen.add(envelope.id)


def _parse_v1(event: ServerSentEvent, cursor: str | None) -> tuple[list[Part], str | None]:
    if not event.data:
        return [], cursor
    try:
        chunk = msgspec.json.decode(event.data)
    except msgspec.DecodeError:
        chunk = event.data
    milliseconds = event.id.partition("-")[0]
    part = Part(
        id=event.id or "unknown",
        chunk=chunk,
        timestamp=int(milliseconds) if milliseconds.isdecimal() else 0,
    )

    return [part], event.id or cursor
