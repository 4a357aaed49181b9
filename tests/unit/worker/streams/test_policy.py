from __future__ import annotations

import pytest

from td_worker.streams.policy import StreamLimits, backoff, linger, retry_delay

LIMITS = StreamLimits(retry_budget=60.0, retry_base=0.1, retry_cap=5.0)


@pytest.mark.parametrize(
    ("attempt", "ceiling"), [(1, 0.1), (2, 0.2), (4, 0.8), (7, 5.0), (99999, 5.0)]
)
def test_back_off_doubles_to_its_cap_with_jitter(attempt, ceiling):
    """Every delay is within half of its ceiling, and the ceiling stops at the cap."""
    delays = [backoff(attempt, base=0.1, cap=5.0) for _ in range(200)]

    assert all(ceiling / 2 <= delay <= ceiling for delay in delays)
    assert len(set(delays)) > 1


def test_back_off_without_jitter_is_exact():
    """Jitter 0 gives the ceiling itself."""
    assert backoff(3, base=0.1, cap=5.0, jitter=0) == pytest.approx(0.4)


def test_a_retry_obeys_the_server():
    """Retry-After is a lower bound of the delay."""
    assert retry_delay(1, limits=LIMITS, retry_after=12.0, elapsed=0) == 12.0


def test_the_budget_ends_the_retries():
    """A delay that would end after the budget is none."""
    assert retry_delay(1, limits=LIMITS, retry_after=None, elapsed=59.99) is None
    assert retry_delay(1, limits=LIMITS, retry_after=61.0, elapsed=0) is None


def test_a_batch_gathers_only_for_what_is_left_of_the_interval():
    """After an idle time a batch goes at once; right after a send it waits the whole interval."""
    assert linger(since_sent=5.0, flush_interval=0.1) == 0.0
    assert linger(since_sent=0.03, flush_interval=0.1) == pytest.approx(0.07)
