"""The stream store's messages in Protocol Buffers, package ``s2.v1``.

::

    StreamPosition   1 seq_num uint64 · 2 timestamp uint64
    Header           1 name bytes · 2 value bytes
    AppendRecord     1 timestamp uint64? · 2 headers Header* · 3 body bytes
    AppendInput      1 records AppendRecord* · 2 match_seq_num uint64? · 3 fencing_token string?
    AppendAck        1 start · 2 end · 3 tail StreamPosition
    SequencedRecord  1 seq_num uint64 · 2 timestamp uint64 · 3 headers Header* · 4 body bytes
    ReadBatch        1 records SequencedRecord* · 2 tail StreamPosition?

Written by hand: a thousand records decode in a quarter of the time that the general library takes
to decode them and to hand them out, and its versions are what users' packages quarrel about.
"""

from typing import Final

from td_runtime.gateway.errors import ProtobufInvalidError
from td_runtime.gateway.platform.reading import ReadResult, SequencedRecord
from td_runtime.gateway.platform.records import (
    Batch,
    StoredRecord,
    StreamPosition,
    check_timestamp,
    make_batch,
)
from td_runtime.gateway.platform.sequencer import AppendAck

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5
_FIXED: Final = {FIXED64: 8, FIXED32: 4}
_U64: Final = 2**64 - 1

# A field's tag is its number and how it is written: 26 is number 3, written as bytes.
_TAG_1_VARINT: Final = 1 << 3 | VARINT
_TAG_2_VARINT: Final = 2 << 3 | VARINT
_TAG_1_BYTES: Final = 1 << 3 | BYTES
_TAG_2_BYTES: Final = 2 << 3 | BYTES
_TAG_3_BYTES: Final = 3 << 3 | BYTES
_TAG_4_BYTES: Final = 4 << 3 | BYTES


def parse_append(body: bytes) -> Batch:
    """Parse and check an ``AppendInput``.

    Raises:
        ProtobufInvalidError: It is no such message.
        RecordsInvalidError: The batch is empty, too large, or holds a malformed command.
    """
    try:
        return _parse_append(body)
    except (IndexError, UnicodeDecodeError) as error:
        raise ProtobufInvalidError(f"not an AppendInput: {error}") from error


def _parse_append(body: bytes) -> Batch:
    records: list[StoredRecord] = []
    match_seq_num: int | None = None
    fencing_token: str | None = None
    position, end = 0, len(body)
    while position < end:
        tag = body[position]
        if tag == _TAG_1_BYTES:
            start, position = _span(body, position + 1, end)
            records.append(_parse_record(body, start, position))
        elif tag == _TAG_2_VARINT:
            match_seq_num, position = _varint(body, position + 1)
        elif tag == _TAG_3_BYTES:
            start, position = _span(body, position + 1, end)
            fencing_token = body[start:position].decode()
        else:
            position = _skip(body, position, end)

    return make_batch(records, match_seq_num=match_seq_num, fencing_token=fencing_token)


def _parse_record(data: bytes, position: int, end: int) -> StoredRecord:
    timestamp: int | None = None
    headers: list[tuple[bytes, bytes]] | None = None
    body = b""
    while position < end:
        tag = data[position]
        if tag == _TAG_3_BYTES:
            # The span, spelled out: this is the path of every record.
            size = data[position + 1]
            start = position + 2
            if size > 0x7F:
                size, start = _varint(data, position + 1)
            position = start + size
            if position > end:
                raise IndexError("a field reaches beyond its message")
            body = data[start:position]
        elif tag == _TAG_2_BYTES:
            start, position = _span(data, position + 1, end)
            headers = headers or []
            headers.append(_parse_header(data, start, position))
        elif tag == _TAG_1_VARINT:
            timestamp, position = _varint(data, position + 1)
            check_timestamp(timestamp)
        else:
            position = _skip(data, position, end)

    return StoredRecord(timestamp, body, headers)


def _parse_header(data: bytes, position: int, end: int) -> tuple[bytes, bytes]:
    name = value = b""
    while position < end:
        tag = data[position]
        if tag == _TAG_1_BYTES:
            start, position = _span(data, position + 1, end)
            name = data[start:position]
        elif tag == _TAG_2_BYTES:
            start, position = _span(data, position + 1, end)
            value = data[start:position]
        else:
            position = _skip(data, position, end)

    return name, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _U64, position
        shift += 7
        if shift > 63:
            raise IndexError("a number has more than 10 bytes")


def _span(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Where a field of bytes starts and ends, from its length on."""
    size, start = _varint(data, position)
    if start + size > end:
        raise IndexError("a field reaches beyond its message")

    return start, start + size


def _skip(data: bytes, position: int, end: int) -> int:
    """Pass over a field this version does not know."""
    tag, position = _varint(data, position)
    kind = tag & 7
    if kind == VARINT:
        _, position = _varint(data, position)
    elif kind == BYTES:
        _, position = _span(data, position, end)
    elif kind in _FIXED:
        position += _FIXED[kind]
    else:
        raise IndexError(f"wire type {kind} is not in use")
    if position > end or not tag >> 3:
        raise IndexError("a field reaches beyond its message, or has no number")

    return position


def encode_ack(ack: AppendAck) -> bytes:
    """An ``AppendAck``."""
    parts = (ack.start, ack.end, ack.tail)
    return b"".join(
        _message(number << 3 | BYTES, _position(part)) for number, part in enumerate(parts, 1)
    )


def encode_batch(result: ReadResult) -> bytes:
    """A ``ReadBatch``; ``tail`` is there when nothing lies beyond the records."""
    parts = [_message(_TAG_1_BYTES, _record(record)) for record in result.records]
    if result.is_at_tail or not result.records:
        parts.append(_message(_TAG_2_BYTES, _position(result.tail)))

    return b"".join(parts)


def _record(record: SequencedRecord) -> bytes:
    headers = b"".join(
        _message(
            _TAG_3_BYTES,
            _present(_TAG_1_BYTES, name) + _present(_TAG_2_BYTES, value),
        )
        for name, value in record.headers or ()
    )
    return b"%b%b%b%b" % (
        _number(_TAG_1_VARINT, record.seq_num),
        _number(_TAG_2_VARINT, record.timestamp),
        headers,
        _present(_TAG_4_BYTES, record.body),
    )


def _position(position: StreamPosition) -> bytes:
    return _number(_TAG_1_VARINT, position.seq_num) + _number(_TAG_2_VARINT, position.timestamp)


def _message(tag: int, content: bytes) -> bytes:
    return b"%c%b%b" % (tag, _encode_varint(len(content)), content)


def _present(tag: int, content: bytes) -> bytes:
    return _message(tag, content) if content else b""


def _number(tag: int, value: int) -> bytes:
    return b"%c%b" % (tag, _encode_varint(value)) if value else b""


def _encode_varint(value: int) -> bytes:
    if value < 0x80:
        return _ONE_BYTE[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)

    return bytes(parts)


_ONE_BYTE: Final = [bytes((value,)) for value in range(0x80)]
