"""When to send, when to try again and when to give up: numbers in, numbers out, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Bounds of the write path of one process. Sizes are bytes, times seconds."""

    slot_bytes: int = 10 * MIB
    """Metered bytes accepted and not yet acked, for one slot; `write()` waits above it."""
    process_bytes: int = 64 * MIB
    """The same over all slots."""
    batch_records: int = 1000
    """Records of one append: S2's bound."""
    batch_bytes: int = MIB
    """Metered bytes of one append: S2's bound."""
    retry_budget: float = 60.0
    """How long a batch may be retried before its records are given up."""
    retry_base: float = 0.1
    """The first back-off; it doubles from there, with jitter."""
    retry_cap: float = 5.0
    """The longest back-off."""


def backoff(attempt: int, *, base: float, cap: float, jitter: float = 0.5) -> float:
    """
    Return the seconds before retry number `attempt`, which counts from 1.

    `base` doubles to `cap`, times a random factor in (1 - jitter, 1].
    """
    ceiling = min(cap, base * 2.0 ** min(attempt - 1, 60))

    return ceiling * (1 - jitter * random.random())  # noqa: S311  spreads load, guards nothing


def retry_delay(
    attempt: int, *, limits: StreamLimits, retry_after: float | None, elapsed: float
) -> float | None:
    """
    Return the seconds to wait before retry number `attempt`, None when the budget is spent.

    A server's `retry_after` is obeyed as long as the budget holds it.
    """
    delay = backoff(attempt, base=limits.retry_base, cap=limits.retry_cap)
    if retry_after is not None:
        delay = max(delay, retry_after)
    if elapsed + delay > limits.retry_budget:
        return None

    return delay


def linger(*, since_sent: float, flush_interval: float) -> float:
    """Return how many more seconds a batch that is not full gathers; 0 after an idle time."""
    return max(0.0, flush_interval - since_sent)
