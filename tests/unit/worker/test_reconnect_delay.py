"""How long a tail waits between two connections: upstream's cases RB1 to RB5."""

from __future__ import annotations

import math

import pytest

from td_worker.tail import reconnect_delay

MANY = 200
"""Draws: a bound that held by chance alone would be found out."""


@pytest.mark.conformance("RB1")
def test_the_first_delay_is_one_to_two_seconds():
    """RB1: attempt 0 waits at least one second and less than two."""
    assert all(1.0 <= reconnect_delay(0) < 2.0 for _ in range(MANY))


@pytest.mark.conformance("RB2")
@pytest.mark.parametrize(("attempt", "least"), [(1, 2), (2, 4), (3, 8), (4, 16), (5, 30), (6, 30)])
def test_it_doubles_to_its_cap(attempt, least):
    """RB2: every attempt doubles the delay, up to 30 seconds."""
    assert all(least <= reconnect_delay(attempt) < least + 1 for _ in range(MANY))


@pytest.mark.conformance("RB3")
@pytest.mark.parametrize("attempt", [5, 30, 31, 1000, 10**9])
def test_it_never_exceeds_cap_and_jitter(attempt):
    """RB3: no attempt, however late, waits more than 31 seconds."""
    assert all(reconnect_delay(attempt) <= 31.0 for _ in range(MANY))


@pytest.mark.conformance("RB4")
def test_jitter_is_up_to_a_second():
    """RB4: what is added is below one second and not always the same."""
    added = [reconnect_delay(3) - 8.0 for _ in range(MANY)]

    assert all(0.0 <= one < 1.0 for one in added)
    assert len(set(added)) > 1


@pytest.mark.conformance("RB5")
@pytest.mark.parametrize("attempt", [-1, -0.5, 0.9, float("nan")])
def test_odd_attempts_count_as_the_first(attempt):
    """RB5: negative, fractional and absent numbers are attempt 0, never NaN."""
    delay = reconnect_delay(attempt)

    assert not math.isnan(delay)
    assert 1.0 <= delay < 2.0
