"""The pure parts: pauses, lives, rows and what replaces them."""

import pickle
from itertools import count

import pytest

from td_sharedcache import CredentialBackoffError, CredentialUnchangedError, MintError, Policy, Slot
from td_sharedcache.credential import Credential
from td_sharedcache.errors import CacheDirectoryError
from td_sharedcache.patience import Patience
from td_sharedcache.policy import poll_pause
from td_sharedcache.row import NOTHING, Gap, Live
from td_sharedcache.testing import FrozenClock, make_grant

SLOT = Slot.run("run_1", "chat")


def make_credential(minted_at=1000.0, max_age=100.0):
    return Credential.of(
        make_grant(SLOT), SLOT, minted_at=minted_at, max_age=max_age, freshness=0.8
    )


@pytest.mark.parametrize(
    ("count", "longest"), [(0, 0), (1, 0), (2, 0.25), (3, 0.5), (8, 16), (9, 30), (5000, 30)]
)
def test_backoff_doubles_jittered_up_to_its_cap(count, longest):
    """The first failure is free; each further one doubles the pause, half of it jitter."""
    for _ in range(50):
        assert longest / 2 <= Policy().backoff(count) <= longest


def test_retry_after_wins_over_a_shorter_backoff_only():
    """A pause is never shorter than asked for, nor longer than anybody could mean."""
    assert Policy().pause_after(1, 7.0) == 7.0
    assert Policy().pause_after(9, 7.0) >= 15.0
    assert Policy().pause_after(1, 86400.0) == 300.0


@pytest.mark.parametrize(
    ("now", "usable"), [(939, False), (941, True), (1000, True), (1099.9, True), (1100, False)]
)
def test_a_credential_is_usable_inside_its_life(now, usable):
    """Neither past its end nor, after a clock was set back, long before its beginning."""
    assert usable == Policy().is_usable(1000.0, 1100.0, now)


def test_failures_are_forgotten_after_a_quiet_minute():
    """A slot that failed an hour ago starts over with a free retry."""
    first = NOTHING.failed(Policy(), 1000.0, MintError("a"), refused="")
    second = first.failed(Policy(), 1000.0, MintError("a"), refused="")

    assert (first.failures, second.failures) == (1, 2)
    assert second.failed(Policy(), 1030.0, MintError("a"), refused="").failures == 3
    assert second.failed(Policy(), 1100.0, MintError("a"), refused="").failures == 1


def test_a_failed_refresh_is_put_off_and_keeps_its_identity():
    """The credential stays; the next refresh is due no sooner than the next look."""
    live = Live(credential=make_credential(), refresh_at=1080.0)

    later = live.refresh_failed(Policy(), 1080.0, MintError("x", retry_after=20.0))

    assert (live.id, 1100.0) == (later.id, later.refresh_at)


def test_churn_counts_young_deaths_in_a_row():
    """A row carries how many credentials before it died young; an old death starts over."""
    live = Live(credential=make_credential(), churn=4, refresh_at=1080.0)

    assert live.evicted(Policy(), 1029.0, refused=False).churn == 5
    old = live.evicted(Policy(), 1031.0, refused=False)
    assert (old.churn, old.until) == (0, 1031.0)


def test_a_refused_token_is_remembered_by_fingerprint_only():
    """The gap after a refusal recognises the token without keeping it."""
    live = Live(credential=make_credential(), refresh_at=1080.0)

    gap = live.evicted(Policy(), 1050.0, refused=True)

    assert gap.refused
    assert live.credential.access_token not in repr(gap)
    assert live.evicted(Policy(), 1050.0, refused=False).refused == ""


def test_polls_get_slower_up_to_a_bound():
    """Waiters neither spin nor sleep through the end of a mint."""
    assert 0.0005 <= poll_pause(0.0) <= 0.0015
    assert 0.0025 <= poll_pause(0.1) <= 0.0075
    assert 0.005 <= poll_pause(60.0) <= 0.015


def test_c9_one_holder_is_waited_for_no_longer_than_its_bound():
    """C9: a process that is seen with the lock all the time is stuck, others beside it or not."""
    clock = FrozenClock()
    turns = iter([{1, 2}, {1, 3}, {1}] * 10)
    patience = Patience(Policy(), clock.clock.monotonic, lambda: frozenset(next(turns)))

    assert [_is_over_after(patience, clock, 0.5) for _ in range(4)] == [False, False, False, True]


def test_c9_processes_that_take_turns_are_each_given_their_time():
    """C9: a lock that changes hands is waited for, but not for ever."""
    clock = FrozenClock()
    pids = count()
    patience = Patience(Policy(), clock.clock.monotonic, lambda: frozenset({next(pids)}))

    seen = [_is_over_after(patience, clock, 1.5) for _ in range(10)]

    assert seen == [False] * 9 + [True]
    assert patience.waited == Policy().lock_wait


def test_c9_a_holder_that_cannot_be_seen_counts_as_one():
    """C9: without the kernel's word on who holds the lock the bound is the one on one holder."""
    clock = FrozenClock()
    patience = Patience(Policy(), clock.clock.monotonic, lambda: None)

    assert [_is_over_after(patience, clock, 1.0) for _ in range(2)] == [False, True]


def test_c9_a_holder_at_work_is_given_its_time():
    """C9: one that runs or waits for a slow disk is not stuck; the bound is the one on all."""
    clock = FrozenClock()
    patience = Patience(Policy(), clock.clock.monotonic, frozenset)

    assert [_is_over_after(patience, clock, 5.0) for _ in range(3)] == [False, False, True]


def _is_over_after(patience, clock, seconds):
    clock.advance(seconds)

    return patience.is_over()


def test_a_token_shows_itself_nowhere():
    """C10: grants and credentials mask their token in every repr, and so in tracebacks."""
    credential = make_credential()

    assert "token-1" in credential.access_token
    assert "token-1" not in repr(credential)
    assert "token-1" not in f"{make_grant(SLOT)} {[credential.access_token]!r}"


def test_slots_are_their_canonical_text():
    """Parts are encoded, so that no two slots look alike; a slot equals its text."""
    assert Slot.run("a/b", "c") != Slot.run("a", "b/c")
    assert Slot.run("a/b", "c") == "run/a%2Fb/c"
    assert Slot.run("a/b", "ü %").parts == ("a/b", "ü %")
    assert (
        Slot.session("s", "chat", "out").kind,
        Slot.session("s", "chat", "out").parts,
    ) == ("session", ("s", "chat", "out"))
    with pytest.raises(ValueError, match="empty"):
        Slot.run("run_1", "")


@pytest.mark.parametrize(
    "error",
    [
        MintError("m", retryable=True, retry_after=3.0, status=503),
        CredentialBackoffError("run/1/x", seconds=2.0, until=5.0, because="503"),
        CredentialUnchangedError("run/1/x"),
        CacheDirectoryError("/x", "it is a file", "Remove it."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error):
    """An error that crosses a process boundary keeps its type, text and facts."""
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert (str(copy), copy.__dict__) == (str(error), error.__dict__)


def test_a_gap_without_a_failure_has_no_error():
    """An eviction is no failure of a mint; only those are passed on to waiters."""
    gap = Gap(id="x", at=0.0, until=0.0)

    assert gap.failure is None
