"""Records that the control plane itself writes and reads: envelopes around what a client sent."""

import secrets
import string
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from td_runtime.gateway.errors import StreamNotFoundError
from td_runtime.gateway.platform.reading import ReadLimit, SequencedRecord
from td_runtime.gateway.platform.records import StoredRecord, make_batch
from td_runtime.gateway.platform.streams import Streams

PART_ID_CHARS: Final = 7
_ALPHABET: Final = string.ascii_letters + string.digits + "_-"


class Envelope(msgspec.Struct, frozen=True):
    """What a record's body is made of."""

    data: Any
    id: str


class Part(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One record, its envelope opened."""

    data: Any
    id: str
    seq_num: int
    headers: list[tuple[str, str]] = []


class Parts:
    """Appends and reads parts of streams."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def append(self, stream: str, text: str, part_id: str) -> int:
        """Append one record whose data is a text; returns its sequence number.

        Raises:
            RecordsInvalidError: With its envelope it is larger than a record may be.
            StoreUnavailableError: It was not stored.
        """
        batch = make_batch([StoredRecord(None, msgspec.json.encode(Envelope(text, part_id)))])
        ack = await self._streams.append(stream, batch, is_creating=True)

        return ack.start.seq_num

    async def walk(
        self, stream: str, start: int, *, bytes_max: int | None = None
    ) -> AsyncIterator[Part]:
        """Every part from ``start`` to the tail, the stream store's own commands left out.

        Args:
            stream: Whose; one that does not exist has none.
            start: A sequence number.
            bytes_max: Stop before the part that would make it more than so many metered bytes.
        """
        size = 0
        while records := await self._read(stream, start):
            for record in records:
                size += record.metered_bytes
                if bytes_max is not None and size > bytes_max:
                    return
                if not is_command(record):
                    yield open_part(record)
            start = records[-1].seq_num + 1

    async def first(self, stream: str, start: int) -> Part | None:
        """The first part from ``start`` on that is there already."""
        async for part in self.walk(stream, start):
            return part
        return None

    async def newest(self, stream: str, count: int) -> Part | None:
        """The newest part, if it is among the last ``count`` records."""
        try:
            tail = await self._streams.tail(stream)
        except StreamNotFoundError:
            return None
        records = await self._read(stream, max(0, tail.seq_num - count))

        return next((open_part(r) for r in reversed(records) if not is_command(r)), None)

    async def _read(self, stream: str, start: int) -> list[SequencedRecord]:
        try:
            return (await self._streams.read(stream, start, ReadLimit())).records
        except StreamNotFoundError:
            return []


def is_command(record: SequencedRecord) -> bool:
    """Whether a record is one of the stream store's own, such as a trim."""
    return any(not name for name, _ in record.headers or ())


def open_part(record: SequencedRecord) -> Part:
    """Open a record's envelope; a body that is none stays as it is."""
    headers = [
        (name.decode("utf-8", "replace"), value.decode("utf-8", "replace"))
        for name, value in record.headers or ()
    ]
    try:
        envelope = msgspec.json.decode(record.body, type=Envelope)
    except msgspec.DecodeError:
        text = record.body.decode("utf-8", "replace")
        return Part(text, "", record.seq_num, headers)

    return Part(envelope.data, envelope.id, record.seq_num, headers)


def new_part_id() -> str:
    """A part id for a client that sent none."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(PART_ID_CHARS))
