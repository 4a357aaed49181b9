"""The restart policy, by numbers alone."""

from __future__ import annotations

import pytest

from td_runtime.errors import ExitCode, TooManyRestartsError
from td_runtime.restart import Deaths, Restart, RestartPolicy


def least() -> float:
    """The draw that takes no jitter off."""
    return 0.0


def most() -> float:
    """The draw that takes nearly half off."""
    return 0.999_999


def delays(policy: RestartPolicy, lives: list[float | None]) -> list[float]:
    """Let one worker after another live that long, and collect the delays between them."""
    deaths = Deaths()
    found = []
    for lived in lives:
        restart = policy.after_death(deaths, lived=lived, random=least, who="worker 1")
        deaths = restart.deaths
        found.append(restart.delay)

    return found


def test_a_worker_that_lived_well_is_replaced_at_once():
    """After `healthy_after` seconds a death costs no delay, and the past is forgotten."""
    past = Deaths(early=7, at_boot=4)

    restart = RestartPolicy().after_death(past, lived=10.0, random=least, who="worker 1")

    assert Restart(delay=0.0, deaths=Deaths()) == restart


def test_early_deaths_back_off():
    """Each death soon after the boot doubles the delay, up to the most."""
    assert delays(RestartPolicy(), [9.9, 0.0, 1.0, 5.0]) == [0.1, 0.2, 0.4, 0.8]
    assert delays(RestartPolicy(), [1.0] * 20)[-1] == 30.0


def test_back_off_starts_over_after_a_healthy_life():
    """One healthy life between early deaths brings the delay back to the first one."""
    assert delays(RestartPolicy(), [1.0, 1.0, 60.0, 1.0]) == [0.1, 0.2, 0.0, 0.1]


def test_thousands_of_early_deaths_do_not_overflow():
    """The exponent has no bound, the delay has."""
    restart = RestartPolicy().after_death(
        Deaths(early=100_000), lived=0.0, random=least, who="worker 1"
    )

    assert restart.delay == 30.0


def test_jitter_takes_off_up_to_a_half():
    """Jitter never exceeds the most, and works there, too."""
    restart = RestartPolicy().after_death(Deaths(early=50), lived=0.0, random=most, who="worker 1")

    assert restart.delay == pytest.approx(15.0, abs=0.001)


def test_boot_failures_give_up():
    """The fifth failed boot in a row ends the program, with an error that names the worker."""
    policy = RestartPolicy()
    assert delays(policy, [None] * 4) == [0.1, 0.2, 0.4, 0.8]

    with pytest.raises(TooManyRestartsError) as caught:
        policy.after_death(Deaths(early=4, at_boot=4), lived=None, random=least, who="worker 3")

    assert caught.value.exit_code == ExitCode.TOO_MANY_RESTARTS
    assert caught.value.what == "worker 3 died 5 times in a row before it was ready"


def test_a_boot_that_succeeded_breaks_the_row():
    """Only consecutive boot failures count: a worker that was ready, however briefly, resets."""
    lives = [None, None, None, None, 0.5, None, None, None, None]

    found = delays(RestartPolicy(), lives)

    assert len(lives) == len(found)
