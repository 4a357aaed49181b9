"""When a failed attempt is tried again: numbers in, numbers out."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from td_worker.errors import (
    AbortTaskRunError,
    ControlPlaneError,
    OutputTooLargeError,
    TaskOutputError,
    TaskPayloadError,
    TdWorkerError,
)

__all__ = ["RetryPolicy", "default_delay", "is_retryable"]

_NEVER_RETRIED: Final = (AbortTaskRunError, TaskPayloadError, TaskOutputError, OutputTooLargeError)
_BAD_REQUEST: Final = 400
_SERVER_ERROR: Final = 500
_RATE_LIMITED: Final = 429
_PASSING: Final = frozenset({408, _RATE_LIMITED})
"""Answers below 500 that may be others the next time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with jitter, by the control plane's own formula and defaults.

    Raises:
        ValueError: A bound is violated.
    """

    max_attempts: int = 3
    """Attempts in all, the first included; at least 1. 1 is no retry."""
    factor: float = 2.0
    """By how much each delay is longer than the one before; at least 1."""
    min_timeout: float = 1.0
    """Seconds before the second attempt, without jitter; not negative."""
    max_timeout: float = 60.0
    """Seconds that no delay exceeds, jitter included; not less than `min_timeout`."""
    randomize: bool = True
    """Stretch each delay by a random factor in [1, 2), so that failures of the same moment do not
    come back in the same moment."""

    def __post_init__(self) -> None:
        _check(self.max_attempts >= 1, "max_attempts must be at least 1", self.max_attempts)
        _check(1 <= self.factor < math.inf, "factor must be at least 1", self.factor)
        _check(0 <= self.min_timeout < math.inf, "min_timeout must be at least 0", self.min_timeout)
        _check(
            self.min_timeout <= self.max_timeout < math.inf,
            "max_timeout must be at least min_timeout",
            self.max_timeout,
        )

    def limited(self, max_attempts: int | None) -> RetryPolicy:
        """Return it with the number of attempts that a run was given at its trigger, if any."""
        return self if max_attempts is None else replace(self, max_attempts=max(1, max_attempts))

    def delay(self, attempt: int, random: Callable[[], float]) -> float | None:
        """Return the seconds to wait after an attempt failed, None if it was the last one.

        Args:
            attempt: How many attempts count so far, the failed one included; from 1.
            random: Returns a number in [0, 1), as `random.random` does.
        """
        if attempt >= self.max_attempts:
            return None
        stretch = 1 + random() if self.randomize else 1.0

        return min(self.max_timeout, stretch * self.min_timeout * self._growth(attempt))

    def _growth(self, attempt: int) -> float:
        try:
            return float(self.factor ** (attempt - 1))
        except OverflowError:
            return sys.float_info.max  # not infinity, which would make a min_timeout of 0 NaN


def default_delay(
    error: BaseException, policy: RetryPolicy, attempt: int, random: Callable[[], float]
) -> float | None:
    """Return the seconds until the next attempt after *error*, None if there is to be none.

    By the control plane's own rules: no attempt after an error that the next one would meet, too,
    and not before the end of a rate limit that names it.

    Args:
        error: What the attempt raised.
        policy: The task's.
        attempt: How many attempts count so far, the failed one included; from 1.
        random: Returns a number in [0, 1), as `random.random` does.
    """
    delay = policy.delay(attempt, random)
    if delay is None or not is_retryable(error):
        return None
    status = getattr(error, "status", None)
    reset = getattr(error, "retry_after", None)
    if isinstance(error, TdWorkerError) and status == _RATE_LIMITED and reset is not None:
        return float(reset) + random()

    return delay


def is_retryable(error: BaseException) -> bool:
    """Whether another attempt may fare better."""
    if isinstance(error, ControlPlaneError):
        status = error.status or 0
        return not _BAD_REQUEST <= status < _SERVER_ERROR or status in _PASSING

    return not isinstance(error, _NEVER_RETRIED)


def _check(is_held: bool, rule: str, value: float) -> None:
    if not is_held:
        raise ValueError(f"{rule}, got {value!r}")
