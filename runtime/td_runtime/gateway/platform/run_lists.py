"""Lists of runs: the query, and the page that answers it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from td_runtime.gateway.platform.answers import RefusalError, query_error
from td_runtime.gateway.platform.durations import parse_duration, parse_moment
from td_runtime.gateway.platform.run_shapes import STATUS, UNUSED, statuses_of
from td_runtime.store.interface import RunReader
from td_runtime.store.records import RunQuery, RunSummary, Status

PAGE_SIZE: Final = 25
PAGE_SIZE_MAX: Final = 100
RANGES_MAX: Final = 100
"""Tags times queues of one query: each pair is looked up by itself."""

_UNKNOWN: Final = ("version", "bulkAction", "schedule", "batch", "machine", "region")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What a list is to show."""

    base: RunQuery
    """All but tags and queues, of which there may be several."""
    tags: tuple[str, ...]
    queues: tuple[str, ...]
    is_empty: bool
    """Nothing can meet it."""

    def ranges(self) -> Iterable[RunQuery]:
        """One query a tag and queue."""
        for tag, queue in itertools.product(self.tags or (None,), self.queues or (None,)):
            yield msgspec.structs.replace(self.base, tag=tag, queue=queue)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of runs, newest first, and the cursors of its neighbours."""

    runs: list[RunSummary]
    following: str | None
    previous: str | None


def parse_list(query: dict[str, str]) -> ListQuery:
    """Read the query of a list.

    Raises:
        RefusalError: 400.
    """
    for name in _UNKNOWN:
        if f"filter[{name}]" in query:
            raise RefusalError(query_error(f"filter[{name}] is not supported here"))
    names = _split(query, "filter[status]")
    tags, queues = _split(query, "filter[tag]"), _split(query, "filter[queue]")
    if max(1, len(tags)) * max(1, len(queues)) > RANGES_MAX:
        raise RefusalError(query_error(f"more than {RANGES_MAX} pairs of tag and queue"))
    statuses = _parse_statuses(names)
    older, newer = query.get("page[after]") or None, query.get("page[before]") or None
    if older and newer:
        raise RefusalError(
            query_error("Cannot pass both page[after] and page[before] on the same request")
        )

    return ListQuery(
        base=RunQuery(
            statuses=statuses,
            tasks=frozenset(_split(query, "filter[taskIdentifier]")),
            since=_parse_since(query),
            until=_parse_time(query, "filter[createdAt][to]"),
            before=older,
            after=newer,
            limit=_parse_size(query),
        ),
        tags=tags,
        queues=queues,
        is_empty=bool(names and not statuses) or query.get("filter[isTest]") == "true",
    )


async def read_page(reader: RunReader, query: ListQuery) -> Page:
    """Read a page; one run more is looked for, to know whether there is another page."""
    if query.is_empty:
        return Page([], None, None)
    size, is_upwards = query.base.limit, query.base.after is not None
    found: dict[str, RunSummary] = {}
    for each in query.ranges():
        page = await reader.find(msgspec.structs.replace(each, limit=size + 1))
        found.update((run.id, run) for run in page)
    # Ids are in the order of acceptance.
    ids = sorted(found, reverse=not is_upwards)
    has_more, ids = len(ids) > size, ids[:size]
    if is_upwards:
        ids.reverse()
    runs = [found[run_id] for run_id in ids]
    if not runs:
        return Page([], None, None)
    has_older = is_upwards or has_more
    has_newer = has_more if is_upwards else query.base.before is not None

    return Page(runs, ids[-1] if has_older else None, ids[0] if has_newer else None)


def _parse_statuses(names: Iterable[str]) -> frozenset[Status]:
    known = set(STATUS.values()) | UNUSED
    found: set[Status] = set()
    for name in names:
        if name not in known:
            raise RefusalError(
                query_error(f"filter[status] must be of {', '.join(sorted(known))}, not {name}")
            )
        found |= statuses_of(name)

    return frozenset(found)


def _parse_size(query: dict[str, str]) -> int:
    text = query.get("page[size]")
    if text is None:
        return PAGE_SIZE
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= PAGE_SIZE_MAX:
        raise RefusalError(query_error(f"page[size] must be from 1 to {PAGE_SIZE_MAX}"))

    return int(text[:9])


def _parse_since(query: dict[str, str]) -> float | None:
    period = query.get("filter[createdAt][period]")
    if period is None:
        return _parse_time(query, "filter[createdAt][from]")
    seconds = parse_duration(period)
    if seconds is None:
        raise RefusalError(
            query_error("filter[createdAt][period] must be like 30s, 1m, 2h, 3d, 4w")
        )

    return time.time() - seconds


def _parse_time(query: dict[str, str], name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 16:
        return int(text) / 1000
    moment = parse_moment(text)
    if moment is None:
        raise RefusalError(query_error(f"{name} must be a date or milliseconds"))

    return moment


def _split(query: dict[str, str], name: str) -> tuple[str, ...]:
    return tuple(part for part in query.get(name, "").split(",") if part)
