"""When another attempt follows a failed one: by the retry policy, or as `catch_error` answers."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from td_worker.hooks import Caught
from td_worker.retry import RetryPolicy, default_delay

__all__ = ["NextAttempt"]

_MOST_ATTEMPTS: Final = 250
"""What `catch_error` may ask for in all, as on the control plane: a hook that always asks for
another attempt would otherwise keep its run for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextAttempt:
    """The attempt after one that fails now."""

    policy: RetryPolicy
    """The run's."""
    used: int
    """How many attempts count so far, the failed one included."""

    def delay_after(self, error: BaseException) -> float | None:
        """Return the seconds until it starts by the policy, None if there is to be none."""
        return default_delay(error, self.policy, self.used, random.random)

    def at_after(self, error: BaseException) -> float | None:
        """Return the same as seconds since the epoch."""
        return _from_now(self.delay_after(error))

    def answered_at(self, answer: Caught) -> float | None:
        """Return when it starts by what a `catch_error` hook has answered, None for not at all."""
        if answer.skip_retrying or self.used >= _MOST_ATTEMPTS:
            return None
        if isinstance(answer.retry_at, datetime):
            return answer.retry_at.timestamp()
        if answer.retry_at is not None:
            return float(answer.retry_at)
        delay = answer.retry_delay
        if delay is None and answer.retry is not None:
            delay = answer.retry.delay(self.used, random.random)

        return _from_now(delay)


def _from_now(delay: float | None) -> float | None:
    return None if delay is None else time.time() + delay
