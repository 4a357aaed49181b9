"""What the cache says about itself: every mint, share, eviction, failure and degradation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from td_sharedcache.slot import Slot

Level = Literal["debug", "info", "warning", "error"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEvent:
    """Something happened; `name` is constant, everything variable is in `fields`."""

    name: str
    level: Level
    fields: dict[str, Any] = field(default_factory=dict)


class Reporter:
    """Counts events and passes them on."""

    def __init__(self, handler: Callable[[CacheEvent], None] | None) -> None:
        self._handler = handler
        self.counts: Counter[str] = Counter()

    def tell(self, name: str, level: Level, slot: Slot | None = None, **fields: Any) -> None:
        """Report an event, about one slot or about the whole namespace."""
        if slot is not None:
            fields = {"slot": str(slot), **fields}
        self.counts[name] += 1
        if self._handler is not None:
            call_safely(self._handler, CacheEvent(name=name, level=level, fields=fields))


def call_safely(handler: Callable[[_T], None], argument: _T) -> None:
    """Call somebody else's code, which cannot undo what it is told of."""
    try:
        handler(argument)
    except Exception:  # noqa: BLE001  a mint must not be lost to a broken handler
        _log.exception("a handler of the credential cache failed")
