"""The retry policy, by numbers alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from td_worker.retry import RetryPolicy


def none() -> float:
    """The draw that stretches nothing."""
    return 0.0


def half() -> float:
    """The draw in the middle."""
    return 0.5


def test_defaults_are_the_control_planes():
    """3 attempts, doubling from one second to a minute, with jitter."""
    assert RetryPolicy() == RetryPolicy(
        max_attempts=3, factor=2, min_timeout=1, max_timeout=60, randomize=True
    )


def test_delays_grow_by_the_factor():
    """Without jitter the delay after attempt n is min_timeout * factor ** (n - 1)."""
    policy = RetryPolicy(max_attempts=6, factor=1.6, randomize=False)

    delays = [policy.delay(attempt, half) for attempt in range(1, 6)]

    assert pytest.approx(delays) == [1.0, 1.6, 2.56, 4.096, 6.5536]


def test_jitter_stretches():
    """The random factor is 1 + the draw."""
    policy = RetryPolicy()

    assert (policy.delay(1, none), policy.delay(1, half)) == (1.0, 1.5)


def test_the_last_attempt_is_not_retried():
    """No delay is given once `max_attempts` are used, or more."""
    policy = RetryPolicy(max_attempts=3)

    assert [policy.delay(3, none), policy.delay(4, none)] == [None, None]
    assert RetryPolicy(max_attempts=1).delay(1, none) is None


def test_a_delay_of_zero_stays_zero():
    """A `min_timeout` of 0 is retried at once, however large the exponent."""
    policy = RetryPolicy(max_attempts=100_000, min_timeout=0, factor=10)

    assert [policy.delay(1, half), policy.delay(99_999, half)] == [0.0, 0.0]


@given(
    attempt=st.integers(1, 100_000),
    factor=st.floats(1, 1000),
    min_timeout=st.floats(0.001, 100),
    stretch=st.floats(0, 1, exclude_max=True),
)
def test_no_delay_leaves_its_bounds(attempt, factor, min_timeout, stretch):
    """Whatever the numbers, min_timeout <= delay <= max_timeout."""
    policy = RetryPolicy(
        max_attempts=200_000, factor=factor, min_timeout=min_timeout, max_timeout=100
    )

    delay = policy.delay(attempt, lambda: stretch)

    assert delay is not None
    assert min_timeout <= delay <= 100


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1, got 0"),
        ({"factor": 0.5}, "factor must be at least 1, got 0.5"),
        ({"factor": float("nan")}, "factor must be at least 1, got nan"),
        ({"min_timeout": -1}, "min_timeout must be at least 0, got -1"),
        ({"max_timeout": 0.5}, "max_timeout must be at least min_timeout, got 0.5"),
    ],
)
def test_bounds_are_checked(wrong: dict[str, Any], rule: str):
    """A policy that cannot work is refused with the rule and the value got."""
    with pytest.raises(ValueError, match=rule):
        RetryPolicy(**wrong)
