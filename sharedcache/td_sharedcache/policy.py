"""When to give up, wait, refresh and count: numbers in, numbers out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, time


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where the time comes from."""

    wall: Callable[[], float] = time
    """For what is shared with other processes and outlives a boot."""
    monotonic: Callable[[], float] = monotonic
    """For what one process waits for: nobody can set it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The cache's limits; times in seconds."""

    revalidate_every: float = 10.0
    """How long a process may use a credential without looking at the shared one."""
    mint_deadline: float = 10.0
    """How long one mint may take."""
    lock_wait: float = 15.0
    """How long to wait for another process's mint, or for many that use the store in turn."""
    store_wait: float = 2.0
    """How long to wait for a process that holds the store and does nothing."""
    backoff_base: float = 0.25
    backoff_cap: float = 30.0
    retry_after_cap: float = 300.0
    """A control plane that asks for more than this is not believed."""
    failures_remembered: float = 60.0
    """A slot that was left alone for this long starts over."""
    churn_window: float = 30.0
    """A credential evicted younger than this was no good from the start."""
    clock_slack: float = 60.0
    """A credential from further in the future than this tells of a clock that was set back."""

    l1_slots: int = 1024
    """Credentials a process keeps; those looked up longest ago go first."""
    l2_slots: int = 10_000
    """Rows the shared file keeps, at about 1 KiB; those used longest ago go first."""

    @property
    def longest_flight(self) -> float:
        """How long a mint in this process may take, all its waiting included."""
        return 2 * self.lock_wait + self.mint_deadline

    def backoff(self, count: int) -> float:
        """Give the jittered pause after the `count`-th failure in a row; the first is free."""
        if count <= 1:
            return 0.0

        # The exponent is bounded: 2.0 ** 1100 is an OverflowError, in the middle of an outage.
        longest = min(self.backoff_cap, self.backoff_base * 2.0 ** min(count - 2, 30))

        return longest * random.uniform(0.5, 1.0)  # noqa: S311  jitter, not a secret

    def pause_after(self, failures: int, retry_after: float | None) -> float:
        """Give the pause after a failed mint, no shorter than the control plane asked for."""
        return max(self.backoff(failures), min(retry_after or 0.0, self.retry_after_cap))

    def is_usable(self, minted_at: float, expires_at: float, now: float) -> bool:
        """Tell whether `now` is inside a credential's life."""
        return minted_at - self.clock_slack <= now < expires_at

    def is_churn(self, minted_at: float, now: float) -> bool:
        """Tell whether a credential that dies now died of something a new one will not cure."""
        return now - minted_at < self.churn_window

    def freshness(self) -> float:
        """Give the share of its life after which a credential is refreshed, drawn once a mint."""
        return random.uniform(0.75, 0.9)  # noqa: S311  spreads load, keeps no secret


def poll_pause(waited: float) -> float:
    """Give the jittered pause until a lock is tried again.

    A waiter loses a twentieth of what it has waited for, and tries a thousand times a second at
    most: each time costs a CPU some 40 µs.

    Args:
        waited: Seconds since the first try.
    """
    pause = min(0.01, max(0.001, waited / 20))

    return pause * random.uniform(0.5, 1.5)  # noqa: S311  keeps pollers out of step
