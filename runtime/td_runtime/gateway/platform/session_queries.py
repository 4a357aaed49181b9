"""The query of a list of sessions."""

from __future__ import annotations

import re
from typing import Any, Final

from td_runtime.gateway.platform.answers import RefusalError, query_error
from td_runtime.gateway.platform.sessions import Filter, now_ms

PAGE_SIZE: Final = 20
PAGE_SIZE_MAX: Final = 100
STATUSES: Final = ("ACTIVE", "CLOSED", "EXPIRED")
_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def parse_page(query: dict[str, str]) -> dict[str, Any]:
    """Which part of the list: ``size``, ``after``, ``before``.

    Raises:
        RefusalError: 400.
    """
    size = _parse_number(query, "page[size]")
    if size is not None and not 1 <= size <= PAGE_SIZE_MAX:
        raise RefusalError(query_error(f"page[size] must be from 1 to {PAGE_SIZE_MAX}"))
    after, before = query.get("page[after]"), query.get("page[before]")
    if after and before:
        raise RefusalError(
            query_error("Cannot pass both page[after] and page[before] on the same request")
        )

    return {"size": size or PAGE_SIZE, "after": after or None, "before": before or None}


def parse_filter(query: dict[str, str]) -> Filter:
    """What restricts the list.

    Raises:
        RefusalError: 400.
    """
    statuses = _parse_list(query, "filter[status]")
    if not set(statuses) <= set(STATUSES):
        raise RefusalError(query_error(f"filter[status] must be of {', '.join(STATUSES)}"))
    period = query.get("filter[createdAt][period]")
    created_from = _parse_number(query, "filter[createdAt][from]")

    return Filter(
        types=_parse_list(query, "filter[type]"),
        tags=_parse_list(query, "filter[tags]"),
        tasks=_parse_list(query, "filter[taskIdentifier]"),
        external_id=query.get("filter[externalId]"),
        statuses=statuses,
        created_from=created_from if period is None else now_ms() - _parse_period(period),
        created_to=_parse_number(query, "filter[createdAt][to]"),
    )


def _parse_list(query: dict[str, str], name: str) -> tuple[str, ...]:
    return tuple(part for part in query.get(name, "").split(",") if part)


def _parse_number(query: dict[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,16}", text):
        raise RefusalError(query_error(f"{name} must be a whole number"))

    return int(text)


def _parse_period(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if found is None:
        raise RefusalError(
            query_error("filter[createdAt][period] must be like 30s, 1m, 2h, 3d, 4w")
        )

    return int(found[1]) * _UNITS_MS[found[2]]
