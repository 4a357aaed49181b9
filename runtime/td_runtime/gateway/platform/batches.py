"""Batches of records as JSON, the way a reader gets them."""

import base64
from collections.abc import Callable
from typing import Literal

import msgspec

from td_runtime.gateway.platform.reading import ReadResult, SequencedRecord
from td_runtime.gateway.platform.records import StreamPosition

Format = Literal["raw", "base64"]


class RecordOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record as JSON; empty headers and an empty body are left out, as S2 does."""

    seq_num: int
    timestamp: int
    headers: list[tuple[str, str]] = []
    body: str = ""


class ReadBatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON of one read; ``tail`` is there when nothing lies beyond the records."""

    records: list[RecordOut]
    tail: StreamPosition | None = None


_encode = msgspec.json.Encoder().encode


def encode_batch(result: ReadResult, format_: Format) -> bytes:
    """A read as JSON."""
    convert = _to_base64 if format_ == "base64" else _to_text
    records = [_convert(record, convert) for record in result.records]
    is_at_tail = result.is_at_tail or not records

    return _encode(ReadBatch(records, result.tail if is_at_tail else None))


def _convert(record: SequencedRecord, convert: Callable[[bytes], str]) -> RecordOut:
    headers = [(convert(name), convert(value)) for name, value in record.headers or ()]
    return RecordOut(record.seq_num, record.timestamp, headers, convert(record.body))


def _to_text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
