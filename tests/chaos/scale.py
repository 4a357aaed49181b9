"""How big a campaign is, and the limits it is held to."""

from __future__ import annotations

from dataclasses import dataclass, field

from td_sharedcache import Policy, Slot

BURSTS_AT_ONCE = 2
"""Slots that a writer writes to before it waits for the acks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """One campaign. All times are seconds."""

    seed: int
    writers: int = 64
    writes: int = 1000
    slots: int = 32
    burst: int = 5
    """Records written to a slot at a time."""
    spread: float = 300.0
    """How long a writer that nothing holds up takes for its writes."""
    bound: float = 600.0
    """After this the campaign has failed: somebody is stuck."""
    max_age: float = 15.0
    """Short, so that credentials are refreshed and run out between two attacks that revoke them."""
    calm: tuple[float, float] = (0.3, 1.4)
    """The least and the longest pause between two attacks."""
    stop: tuple[float, float] = (0.2, 3.0)
    """The shortest and the longest SIGSTOP."""
    append_delay: float = 10.5
    """Longer than a stream store's client waits for an answer."""
    long_stops: bool = True
    """Whether minting processes are also stopped for longer than others wait for a lock."""
    policy: Policy = field(default_factory=Policy)

    @property
    def slot_names(self) -> list[Slot]:
        """The slots, eight streams a run."""
        return [Slot.run(f"run-{n // 8}", f"stream-{n % 8}") for n in range(self.slots)]

    @property
    def steps(self) -> int:
        """How often each writer writes and waits for the acks."""
        return max(1, self.writes // (self.burst * BURSTS_AT_ONCE))

    @property
    def longest_wait(self) -> float:
        """The bound on a wait beyond the mint itself, in sound conditions.

        What a process may wait for the store's own lock, and the time slices of many processes on
        few cores.
        """
        return self.policy.store_wait + 3.0

    @property
    def longest_wait_attacked(self) -> float:
        """The same while a process is stopped or the folder is attacked: the lock's bound, too."""
        return self.policy.lock_wait + 2 * self.policy.store_wait + 5.0


def full(seed: int) -> Scale:
    """The campaign of `make chaos`."""
    return Scale(seed=seed)


def small(seed: int) -> Scale:
    """The campaign that the test suite runs."""
    return Scale(
        seed=seed,
        writers=8,
        writes=300,
        slots=4,
        burst=2,
        spread=7.0,
        bound=90.0,
        max_age=6.0,
        calm=(0.02, 0.15),
        stop=(0.1, 0.6),
        append_delay=0.5,
        long_stops=False,
        # What is excused must be short: back with the others soon after attacks on the folder, and
        # no long pauses for credentials that die as often as they do here.
        policy=Policy(revalidate_every=1.5, churn_window=0.5),
    )
