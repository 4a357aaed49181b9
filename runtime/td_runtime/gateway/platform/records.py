"""Records: how they arrive, how they are metered, how they are stored."""

import base64
import binascii
from collections.abc import Sequence
from typing import Final

import msgspec

from td_runtime.gateway.errors import RecordsInvalidError

BATCH_RECORDS_MAX: Final = 1000
BATCH_BYTES_MAX: Final = 1024 * 1024
FENCING_TOKEN_BYTES_MAX: Final = 36
TRIM_BODY_BYTES: Final = 8
TIMESTAMP_MAX: Final = 2**63 - 1  # what SQLite keeps in an integer column


class StreamPosition(msgspec.Struct, frozen=True):
    """A place in a stream: a sequence number and a timestamp in milliseconds."""

    seq_num: int
    timestamp: int


class StoredRecord(msgspec.Struct, array_like=True):
    """One record as a batch row keeps it; its sequence number is its place in the batch."""

    timestamp: int | None
    body: bytes
    headers: list[tuple[bytes, bytes]] | None = None

    @property
    def metered_bytes(self) -> int:
        """What the record counts against every byte limit."""
        if not self.headers:
            return 8 + len(self.body)

        return 8 + len(self.body) + sum(2 + len(name) + len(value) for name, value in self.headers)


class AppendRecord(msgspec.Struct):
    """One record of an append request."""

    body: str = ""
    headers: list[tuple[str, str]] | None = None
    timestamp: int | None = None


class AppendInput(msgspec.Struct):
    """The JSON body of an append request."""

    records: list[AppendRecord]
    match_seq_num: int | None = None
    fencing_token: str | None = None


class Batch(msgspec.Struct):
    """A batch that fits the stream store's rules and is ready to be sequenced.

    ``trim_to`` and ``fence_to`` are what its command records ask for, the last one winning.
    """

    records: list[StoredRecord]
    match_seq_num: int | None = None
    fencing_token: str | None = None
    trim_to: tuple[int, int] | None = None  # (index in the batch, sequence number asked for)
    fence_to: str | None = None

    @property
    def ops(self) -> set[str]:
        """The operations a token must allow for this batch."""
        ops = {"append"}
        if self.trim_to is not None:
            ops.add("trim")
        if self.fence_to is not None:
            ops.add("fence")

        return ops


_decoder = msgspec.json.Decoder(AppendInput)


def parse_append(body: bytes, *, is_base64: bool) -> Batch:
    """Parse and check the JSON of an append request.

    Raises:
        RecordsInvalidError: The batch is empty, too large, or holds a malformed command.
        msgspec.DecodeError: It is not the JSON that is expected (validation errors included).
    """
    append = _decoder.decode(body)
    records = [_decode(record, is_base64=is_base64) for record in append.records]

    return make_batch(
        records, match_seq_num=append.match_seq_num, fencing_token=append.fencing_token
    )


def make_batch(
    records: list[StoredRecord],
    *,
    match_seq_num: int | None = None,
    fencing_token: str | None = None,
) -> Batch:
    """Check the limits and read the command records of a batch.

    Raises:
        RecordsInvalidError: See ``parse_append``.
    """
    _check_limits(records)
    _check_fencing_token(fencing_token)
    batch = Batch(records=records, match_seq_num=match_seq_num, fencing_token=fencing_token)
    for index, record in enumerate(records):
        if record.headers:
            _read_command(batch, index, record)

    return batch


def check_timestamp(timestamp: int) -> None:
    """Refuse a timestamp that cannot be kept.

    Raises:
        RecordsInvalidError: It is out of range.
    """
    if not 0 <= timestamp <= TIMESTAMP_MAX:
        raise RecordsInvalidError(f"timestamp out of range: {timestamp}")


def _decode(record: AppendRecord, *, is_base64: bool) -> StoredRecord:
    timestamp = record.timestamp
    if timestamp is not None:
        check_timestamp(timestamp)
    convert = _from_base64 if is_base64 else str.encode
    if not record.headers:
        return StoredRecord(timestamp, convert(record.body))

    headers = [(convert(name), convert(value)) for name, value in record.headers]
    return StoredRecord(timestamp, convert(record.body), headers)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise RecordsInvalidError(f"invalid base64: {error}") from error


def _check_limits(records: Sequence[StoredRecord]) -> None:
    if not records:
        raise RecordsInvalidError("record batch must not be empty")
    if len(records) > BATCH_RECORDS_MAX:
        raise RecordsInvalidError(
            f"record batch has {len(records)} records; the limit is {BATCH_RECORDS_MAX}"
        )
    size = sum(record.metered_bytes for record in records)
    if size > BATCH_BYTES_MAX:
        raise RecordsInvalidError(
            f"record batch has {size} metered bytes; the limit is {BATCH_BYTES_MAX}"
        )


def _check_fencing_token(token: str | None) -> None:
    if token is not None and len(token.encode()) > FENCING_TOKEN_BYTES_MAX:
        raise RecordsInvalidError(
            f"fencing token is longer than the limit of {FENCING_TOKEN_BYTES_MAX} bytes"
        )


def _read_command(batch: Batch, index: int, record: StoredRecord) -> None:
    headers = record.headers or []
    if all(name for name, _ in headers):
        return
    if len(headers) > 1:
        raise RecordsInvalidError("a command record has exactly one header, with an empty name")
    operation = headers[0][1]
    if operation == b"fence":
        batch.fence_to = _fence_target(record.body)
    elif operation == b"trim":
        batch.trim_to = (index, _trim_target(record.body))
    else:
        raise RecordsInvalidError("unknown command record: expected `fence` or `trim`")


def _fence_target(body: bytes) -> str:
    try:
        token = body.decode()
    except UnicodeDecodeError as error:
        raise RecordsInvalidError("a fence command's body must be UTF-8 text") from error
    _check_fencing_token(token)

    return token


def _trim_target(body: bytes) -> int:
    if len(body) != TRIM_BODY_BYTES:
        raise RecordsInvalidError("a trim command's body must be 8 bytes, a big-endian number")

    return int.from_bytes(body, "big")
