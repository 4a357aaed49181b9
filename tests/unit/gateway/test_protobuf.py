"""The messages of the stream store; the bytes here were made by the official Python client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from td_runtime.gateway.errors import ProtobufInvalidError, RecordsInvalidError
from td_runtime.gateway.platform.protobuf import encode_ack, encode_batch, parse_append
from td_runtime.gateway.platform.reading import ReadResult, SequencedRecord
from td_runtime.gateway.platform.records import StoredRecord, StreamPosition
from td_runtime.gateway.platform.sequencer import AppendAck

NOW = 1_700_000_000_000
APPEND = (
    b"\n\x05\x08\x00\x1a\x01a"
    b"\n\xdb\x01\x08\xac\x02\x12\x06\n\x01n\x12\x01v\x12\x03\n\x01e\x1a\xc8\x01"
    + b"x"
    * 200
    + b"\n\x00"
    b"\x10\x80\x80\x80\x80\x80 \x1a\x03f\xc3\xa9"
)


def test_an_append_is_read() -> None:
    """Bodies, headers, timestamps, zero included, and both conditions are found."""
    batch = parse_append(APPEND)

    assert batch.records == [
        StoredRecord(0, b"a"),
        StoredRecord(300, b"x" * 200, [(b"n", b"v"), (b"e", b"")]),
        StoredRecord(None, b""),
    ]
    assert (batch.match_seq_num, batch.fencing_token) == (2**40, "fé")


def test_conditions_of_nothing_are_conditions() -> None:
    """A sequence number of 0 and an empty fencing token are there, not left out."""
    batch = parse_append(b"\n\x03\x1a\x01z\x10\x00\x1a\x00")

    assert (batch.match_seq_num, batch.fencing_token) == (0, "")


def test_fields_of_a_later_version_are_passed_over() -> None:
    """Fields that are not known, of every wire type, change nothing."""
    unknown = (
        b"\xa0\x06\x80\x01" + b"\xa2\x06\x02hi" + b"\xa1\x06" + bytes(8) + b"\xa5\x06" + bytes(4)
    )
    record = b"\x1a\x01z" + unknown

    batch = parse_append(unknown + b"\n" + bytes([len(record)]) + record + unknown)

    assert batch.records == [StoredRecord(None, b"z")]


@pytest.mark.parametrize(
    "body",
    [
        b"\n",
        b"\n\x05\x1a\x01z",
        b"\n\x03\x1a\x7fz",
        b"\n\x03\x1a\x01z\x10" + b"\x80" * 10 + b"\x01",
        b"\n\x03\x1a\x01z\x1a\x01\xff",
        b"\n\x03\x1a\x01z\x0b",
        b"\n\x03\x1a\x01z\x00\x00",
        b"\n\x04\x09\0\0\0",
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    """Cut, overlong and malformed messages are errors, whatever is wrong with them."""
    with pytest.raises(ProtobufInvalidError):
        parse_append(body)


def test_a_timestamp_that_cannot_be_kept_is_refused() -> None:
    """A timestamp beyond 63 bits is refused before it reaches the store."""
    with pytest.raises(RecordsInvalidError):
        parse_append(b"\n\x0b\x08" + b"\xff" * 9 + b"\x01")


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """No input raises anything but the two errors that a client is told of."""
    try:
        parse_append(body)
    except (ProtobufInvalidError, RecordsInvalidError):
        return


def test_an_acknowledgement_is_written() -> None:
    """Zeros are left out, as in any message of this syntax."""
    start, end = StreamPosition(0, NOW), StreamPosition(3, NOW)

    assert encode_ack(AppendAck(start, end, end)) == (
        b"\n\x07\x10\x80\xd0\x95\xff\xbc1"
        b"\x12\t\x08\x03\x10\x80\xd0\x95\xff\xbc1"
        b"\x1a\t\x08\x03\x10\x80\xd0\x95\xff\xbc1"
    )


def test_a_batch_is_written() -> None:
    """Records with and without headers, and the tail that they reach."""
    records = [
        SequencedRecord(0, 5, b"a", None, 9),
        SequencedRecord(20_000, NOW, bytes(8), [(b"", b"trim")], 22),
    ]

    assert encode_batch(ReadResult(records, StreamPosition(20_001, NOW))) == (
        b'\n\x05\x10\x05"\x01a'
        b'\n\x1d\x08\xa0\x9c\x01\x10\x80\xd0\x95\xff\xbc1\x1a\x06\x12\x04trim"\x08'
        + bytes(8)
        + b"\x12\x0b\x08\xa1\x9c\x01\x10\x80\xd0\x95\xff\xbc1"
    )


def test_nothing_to_read_says_where_the_tail_is() -> None:
    """A heartbeat is a batch without records, with a tail even if that is zero."""
    assert encode_batch(ReadResult([], StreamPosition(0, 0))) == b"\x12\x00"
