"""How big a campaign is, and the limits it is held to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """One campaign. All times are seconds."""

    seed: int
    runs: int = 20_000
    """Runs that clients ask for; children come on top."""
    workers: int = 10
    concurrency: int = 10
    spread: float = 330.0
    """How long the clients take to ask for all runs."""
    bound: float = 570.0
    """Seconds after which a run without an outcome is stuck."""
    restarts: int = 10
    """How often the supervisor is killed."""
    strike_every: float = 0.2
    """Seconds between two attacks on workers."""
    stop: tuple[float, float] = (0.05, 1.5)
    """The shortest and the longest SIGSTOP."""
    longest_pause: float = 0.3
    """The longest run that is not endless."""
    max_attempts: int = 3
    max_crashes: int = 3
    cancel_grace: float = 1.0
    max_duration: float = 0.5
    """Seconds that runs get which take longer."""


def full(seed: int) -> Scale:
    """The campaign of `make chaos-runs`."""
    return Scale(seed=seed)


def small(seed: int) -> Scale:
    """The campaign that the test suite runs."""
    return Scale(
        seed=seed,
        runs=300,
        workers=4,
        spread=7.0,
        bound=120.0,
        restarts=2,
        strike_every=0.5,
        stop=(0.05, 0.4),
        longest_pause=0.2,
        cancel_grace=0.5,
    )
