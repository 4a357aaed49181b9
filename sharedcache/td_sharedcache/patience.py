"""Tells a store that is stuck from one that is only much wanted."""

from __future__ import annotations

from collections.abc import Callable

from td_sharedcache.policy import Policy

_GLANCE = 0.1
"""Seconds between two looks at who holds the lock: one reads a page or two from the kernel."""


class Patience:
    """How long one caller waits for the store's lock.

    A holder needs it for some 50 µs and never sleeps meanwhile, so one that is seen asleep with it
    again and again is stopped, or a stranger. Processes that take it in turn may be many on a slow
    machine, and one may wait for its disk for seconds: each is given its time.

    Args:
        policy: `store_wait` is the bound on one holder, `lock_wait` the one on all of them.
        now: The monotonic time.
        idle: Gives who holds the lock asleep at the moment; None if it is not known who holds it.
    """

    def __init__(
        self, policy: Policy, now: Callable[[], float], idle: Callable[[], frozenset[int] | None]
    ) -> None:
        self._policy = policy
        self._now = now
        self._idle = idle
        self._began = self._since = now()
        self._look_at = self._began + _GLANCE
        self._same: frozenset[int] = frozenset()
        """Who was asleep with it at every look since then."""
        self._has_looked = False

    @property
    def waited(self) -> float:
        """Seconds since the first try."""
        return self._now() - self._began

    def is_over(self) -> bool:
        """Tell whether to give up; called whenever the lock was found taken."""
        now = self._now()
        if now >= self._look_at:
            self._look_at = now + _GLANCE
            self._look(now)

        return (
            now - self._since >= self._policy.store_wait
            or now - self._began >= self._policy.lock_wait
        )

    def _look(self, now: float) -> None:
        idle = self._idle()
        if idle is None:
            return
        same = self._same & idle if self._has_looked else idle
        if not same:
            # Nobody has kept it asleep all the time.
            self._since, same = now, idle
        self._same, self._has_looked = same, True
