"""When a dead process is replaced, and when no more: numbers in, numbers out, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from td_runtime.errors import TooManyRestartsError

__all__ = ["Deaths", "Restart", "RestartPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaths:
    """What is remembered of the earlier workers in one place."""

    early: int = 0
    """How many in a row died at boot or soon after it."""
    at_boot: int = 0
    """How many of them, in a row, were never ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """What to do about a death."""

    delay: float
    """Seconds until the next worker is forked."""
    deaths: Deaths
    """What to remember until that one dies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Replaces a worker at once if it had lived well, else backs off, and gives up in the end."""

    healthy_after: float = 10.0
    """Seconds of being ready after which a death is an accident, and the past is forgotten."""
    min_delay: float = 0.1
    """Seconds before the first restart after an early death, without jitter."""
    max_delay: float = 30.0
    """Seconds that no delay exceeds."""
    factor: float = 2.0
    """By how much each delay is longer than the one before."""
    max_boot_failures: int = 5
    """The failed boot in a row that is the last one."""

    def after_death(
        self, deaths: Deaths, *, lived: float | None, random: Callable[[], float], who: str
    ) -> Restart:
        """Decide about the place of a worker that died.

        Args:
            deaths: What was remembered at its start.
            lived: For how many seconds it had been ready; None if it never was.
            random: Returns a number in [0, 1), as `random.random` does.
            who: The process, for the error: "worker 2".

        Raises:
            TooManyRestartsError: It failed to boot, as its predecessors did.
        """
        if lived is not None and lived >= self.healthy_after:
            return Restart(delay=0.0, deaths=Deaths())
        at_boot = deaths.at_boot + 1 if lived is None else 0
        if at_boot >= self.max_boot_failures:
            raise _gave_up(who, at_boot)

        return Restart(
            delay=self._delay(deaths.early, random),
            deaths=Deaths(early=deaths.early + 1, at_boot=at_boot),
        )

    def _delay(self, earlier: int, random: Callable[[], float]) -> float:
        """Back off; jitter takes off up to a half, so that workers do not come back in step."""
        try:
            delay = min(self.max_delay, self.min_delay * self.factor**earlier)
        except OverflowError:
            delay = self.max_delay

        return delay * (1 - random() / 2)


def _gave_up(who: str, failures: int) -> TooManyRestartsError:
    return TooManyRestartsError(
        f"{who} died {failures} times in a row before it was ready",
        advice="look for its last lines in the log; `td-runtime check` looks at tasks and folders",
    )
