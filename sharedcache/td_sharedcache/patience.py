"""Tells a store that is stuck from one that is only much wanted."""

from __future__ import annotations

from collections.abc import Callable

from td_sharedcache.policy import Policy

_GLANCE = 0.1
"""Seconds between two looks at who holds the lock: one reads a page or two from the kernel."""


class Patience:
    """How long one caller waits for the store's lock.

    A holder needs it for some 50 µs, so one that is seen with it again and again is stopped, or a
    stranger. Processes that take it in turn may be many on a slow machine: each is given its time.

    Args:
        policy: `store_wait` is the bound on one holder, `lock_wait` the one on all of them.
        now: The monotonic time.
        holders: Gives who holds the lock at the moment; nobody if that is not known.
    """

    def __init__(
        self, policy: Policy, now: Callable[[], float], holders: Callable[[], frozenset[int]]
    ) -> None:
        self._policy = policy
        self._now = now
        self._holders = holders
        self._began = self._since = now()
        self._look_at = self._began + _GLANCE
        self._same: frozenset[int] = frozenset()

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
        seen = self._holders()
        if not seen:
            return
        if self._same and not self._same & seen:
            # Nobody has held it all the time.
            self._since, self._same = now, seen
        else:
            self._same = self._same & seen or seen
