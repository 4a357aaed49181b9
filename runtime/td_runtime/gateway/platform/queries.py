"""What a read asks for, parsed from query and headers: where to start, how far to go."""

import re
from typing import Final

import msgspec

from td_runtime.gateway.errors import HeaderInvalidError, QueryInvalidError, RecordsInvalidError
from td_runtime.gateway.platform.reading import ReadLimit
from td_runtime.gateway.platform.records import BATCH_BYTES_MAX, BATCH_RECORDS_MAX

NUMBER_MAX: Final = 2**64 - 1
PAGE_MAX: Final = 1000


class Start(msgspec.Struct, frozen=True):
    """Where a read is asked to start: at most one of the three, the tail if none."""

    seq_num: int | None = None
    timestamp: int | None = None
    tail_offset: int | None = None
    is_clamped: bool = False


def parse_start(query: dict[str, str]) -> Start:
    """Where to start.

    Raises:
        QueryInvalidError: A parameter does not parse.
        RecordsInvalidError: More than one place is named.
    """
    names = ("seq_num", "timestamp", "tail_offset")
    seq_num, timestamp, tail_offset = (_parse_number(query, name) for name in names)
    if sum(name in query for name in names) > 1:
        raise RecordsInvalidError("only one of seq_num, timestamp, or tail_offset can be provided")

    return Start(seq_num, timestamp, tail_offset, _parse_clamp(query))


def _parse_clamp(query: dict[str, str]) -> bool:
    match query.get("clamp", "false"):
        case "true":
            return True
        case "false":
            return False
        case other:
            raise QueryInvalidError(f"invalid query `clamp`: `{other}`, not true or false")


def parse_limit(query: dict[str, str]) -> ReadLimit:
    """How far to go.

    Raises:
        QueryInvalidError: A parameter does not parse.
    """
    count, size, until = (_parse_number(query, name) for name in ("count", "bytes", "until"))
    return ReadLimit(count, size, until)


def parse_wait(query: dict[str, str]) -> int | None:
    """Seconds to wait at the tail, None if the query does not say.

    Raises:
        QueryInvalidError: It does not parse.
    """
    return _parse_number(query, "wait")


class PageQuery(msgspec.Struct, frozen=True):
    """Which part of a list is asked for."""

    prefix: str
    after: str
    limit: int


def parse_page(query: dict[str, str]) -> PageQuery:
    """Which part of a list is asked for, at most 1000 of it.

    Raises:
        QueryInvalidError: The limit does not parse.
    """
    limit = _parse_number(query, "limit")
    return PageQuery(
        query.get("prefix", ""),
        query.get("start_after", ""),
        min(PAGE_MAX if limit is None else limit, PAGE_MAX),
    )


def _parse_number(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) > NUMBER_MAX:
        raise QueryInvalidError(f"invalid query `{name}`: `{text}` is not a whole number")

    return int(text)


def cap(limit: ReadLimit) -> ReadLimit:
    """The limit of a single answer: at most 1000 records and 1 MiB."""
    return ReadLimit(
        min(limit.count if limit.count is not None else BATCH_RECORDS_MAX, BATCH_RECORDS_MAX),
        min(limit.size if limit.size is not None else BATCH_BYTES_MAX, BATCH_BYTES_MAX),
        limit.until,
    )


def resume(last_event_id: str | None, start: Start, limit: ReadLimit) -> tuple[Start, ReadLimit]:
    """Go on after the last event seen: later start, smaller limits."""
    if last_event_id is None:
        return start, limit
    found = re.fullmatch(r"([0-9]{1,20}),([0-9]{1,20}),([0-9]{1,20})", last_event_id)
    if found is None:
        raise HeaderInvalidError(f"invalid Last-Event-ID: `{last_event_id}`")
    seq_num, count, size = (int(part) for part in found.groups())
    reduced = ReadLimit(
        None if limit.count is None else max(0, limit.count - count),
        None if limit.size is None else max(0, limit.size - size),
        limit.until,
    )

    return Start(seq_num=seq_num + 1, is_clamped=start.is_clamped), reduced
