"""The cache's behaviour seen by one caller: upstream's cases RC1-RC7 and SC1-SC5, and ours."""

import pytest

from td_sharedcache import (
    CacheEvent,
    CredentialBackoffError,
    CredentialUnchangedError,
    MintError,
    Notice,
    Slot,
)
from td_sharedcache.testing import (
    FrozenClock,
    InMemoryCredentialCache,
    ScriptedMinter,
    make_grant,
)

CHAT = Slot.run("run-1", "chat")


def make(script=(), **options):
    """Give a cache, its minter, its clock, its events and its notices."""
    minter, clock = ScriptedMinter(script), FrozenClock()
    events: list[CacheEvent] = []
    notices: list[Notice] = []
    cache = InMemoryCredentialCache(
        minter, clock=clock.clock, on_event=events.append, on_notice=notices.append, **options
    )

    return cache, minter, clock, events, notices


def names(events):
    return [event.name for event in events]


@pytest.mark.conformance("RC1")
async def test_rc1_two_lookups_share_one_put():
    """RC1: two look-ups of a slot give the same credential for one PUT."""
    cache, minter, *_ = make()

    first, second = await cache.get(CHAT), await cache.get(CHAT)

    assert first is second
    assert minter.slots == [CHAT]


@pytest.mark.conformance("RC2")
async def test_rc2_each_key_has_its_own_put():
    """RC2: two stream keys of a run are two slots."""
    cache, minter, *_ = make()

    await cache.get(CHAT)
    await cache.get(Slot.run("run-1", "tool-output"))

    assert [s.parts for s in minter.slots] == [("run-1", "chat"), ("run-1", "tool-output")]


@pytest.mark.conformance("RC3")
async def test_rc3_each_run_has_its_own_put():
    """RC3: one key in two runs is two slots."""
    cache, minter, *_ = make()

    await cache.get(CHAT)
    await cache.get(Slot.run("run-2", "chat"))

    assert len(minter.slots) == 2


@pytest.mark.conformance("RC4")
async def test_rc4_the_call_after_a_failed_put_tries_again():
    """RC4: a failed PUT is never cached: its caller sees the error, the next one a credential."""
    cache, minter, *_ = make([MintError("boom")])

    with pytest.raises(MintError, match=r"^boom$"):
        await cache.get(CHAT)

    assert (await cache.get(CHAT)).access_token == "token-2-run/run-1/chat"
    assert len(minter.slots) == 2


@pytest.mark.conformance("RC5")
async def test_rc5_reset_makes_the_next_call_put():
    """RC5, C11: after reset() the next call PUTs, and everybody is told."""
    cache, minter, _, events, notices = make()
    await cache.get(CHAT)

    await cache.reset()

    assert cache.peek(CHAT) is None
    await cache.get(CHAT)
    assert len(minter.slots) == 2
    assert "credential.reset" in names(events)
    assert [(n.slot, n.credential_id) for n in notices] == [(None, None)]


@pytest.mark.conformance("RC6")
async def test_rc6_evicting_the_current_credential_makes_the_next_call_put():
    """RC6: evict with the id in use empties the slot, once, with one notice."""
    cache, minter, _, _, notices = make()
    failed = await cache.get(CHAT)

    assert await cache.evict(CHAT, failed.id, reason="write failed")
    assert not await cache.evict(CHAT, failed.id, reason="write failed")

    assert (await cache.get(CHAT)).id != failed.id
    assert len(minter.slots) == 2
    assert [failed.id] == [notice.credential_id for notice in notices]


@pytest.mark.conformance("RC7")
async def test_rc7_evicting_another_credential_keeps_the_slot():
    """RC7, C3: a late failure with an old id evicts nothing."""
    cache, minter, _, events, notices = make()
    old = await cache.get(CHAT)
    await cache.evict(CHAT, old.id, reason="write failed")
    current = await cache.get(CHAT)

    assert not await cache.evict(CHAT, old.id, reason="late")

    assert cache.peek(CHAT) is current
    assert current == await cache.get(CHAT)
    assert len(minter.slots) == 2
    assert events[-1].name == "credential.eviction_refused"
    assert len(notices) == 1


@pytest.mark.conformance("SC1")
async def test_sc1_writers_of_one_session_channel_share_one_put():
    """SC1: three uses of one channel's output cost one PUT."""
    cache, minter, *_ = make()
    out = Slot.session("session-1", "chat", "out")

    for _ in range(3):
        await cache.get(out)

    assert [out] == minter.slots


@pytest.mark.conformance("SC2")
async def test_sc2_a_session_whose_first_put_failed_tries_again():
    """SC2: a rejected initialise is not kept."""
    cache, minter, *_ = make([MintError("no")])
    out = Slot.session("session-1", "chat", "out")

    with pytest.raises(MintError):
        await cache.get(out)
    await cache.get(out)

    assert len(minter.slots) == 2


@pytest.mark.conformance("SC3")
async def test_sc3_a_session_is_put_again_after_reset():
    """SC3: reset() drops session slots too."""
    cache, minter, *_ = make()
    out = Slot.session("session-1", "chat", "out")
    await cache.get(out)

    await cache.reset()
    await cache.get(out)

    assert len(minter.slots) == 2


@pytest.mark.conformance("SC4")
async def test_sc4_two_sessions_have_a_put_each():
    """SC4: slots of two sessions do not meet."""
    cache, minter, *_ = make()

    await cache.get(Slot.session("session-a", "chat", "out"))
    await cache.get(Slot.session("session-b", "chat", "out"))

    assert len(minter.slots) == 2


@pytest.mark.conformance("SC5")
async def test_sc5_the_write_after_a_rejected_one_has_a_new_credential():
    """SC5: once a writer's failure has evicted, the next writer gets another credential."""
    cache, *_ = make()
    out = Slot.session("session-1", "chat", "out")
    expired = await cache.get(out)

    await cache.evict(out, expired.id, reason="token expired", refused=True)

    assert (await cache.get(out)).access_token != expired.access_token


def test_blocking_twins_do_the_same():
    """get, evict and reset have twins for plain threads with the same outcome."""
    cache, minter, _, _, notices = make()
    first = cache.get_blocking(CHAT)

    assert cache.get_blocking(CHAT) is first
    assert cache.evict_blocking(CHAT, first.id, reason="x")
    assert cache.get_blocking(CHAT).id != first.id
    cache.reset_blocking()
    cache.get_blocking(CHAT)

    assert len(minter.slots) == 3
    assert len(notices) == 2


def test_c2_a_hit_is_served_without_store_lock_or_loop():
    """C2: a hit is a look-up and a compare; not even a broken store or a held guard matters."""
    cache, minter, *_ = make()
    held = cache.get_blocking(CHAT)
    cache._minting = None
    cache._shared = None

    assert cache.peek(CHAT) is held
    with pytest.raises(StopIteration) as hit:
        cache.get(CHAT).send(None)
    assert hit.value.value is held
    assert cache.get_blocking(CHAT) is held
    assert cache.stats["l1_hits"] == 3
    assert len(minter.slots) == 1


def test_c5_repeated_failures_back_off_and_a_success_ends_it():
    """C5: the first failure is free, the second is not; nothing is sent during the pause."""
    cache, minter, clock, events, _ = make([MintError("a"), MintError("b", status=503)])
    for text in ("a", "b"):
        with pytest.raises(MintError, match=text):
            cache.get_blocking(CHAT)

    with pytest.raises(CredentialBackoffError, match="b") as early:
        cache.get_blocking(CHAT)

    assert len(minter.slots) == 2
    assert early.value.retryable
    assert 0.125 <= early.value.retry_after <= 0.25
    assert events[-1].name == "credential.mint_backed_off"
    clock.advance(0.25)
    assert cache.get_blocking(CHAT)
    assert names(events)[:2] == ["credential.mint_failed", "credential.mint_failed"]


def test_c5_retry_after_is_obeyed_from_the_first_failure():
    """C5: a control plane that asks for 7 s is left alone for 7 s, by later callers too."""
    cache, minter, clock, *_ = make([MintError("busy", retryable=True, retry_after=7.0)])
    with pytest.raises(MintError):
        cache.get_blocking(CHAT)

    clock.advance(6.9)
    with pytest.raises(CredentialBackoffError) as early:
        cache.get_blocking(CHAT)
    assert pytest.approx(0.1, abs=1e-3) == early.value.retry_after

    clock.advance(0.2)
    assert cache.get_blocking(CHAT)
    assert len(minter.slots) == 2


def test_c5_what_a_minter_raises_by_mistake_is_a_mint_error_with_its_cause():
    """A minter's bug reaches the caller in the one error tree, cause kept."""
    cache, *_ = make([ZeroDivisionError("oops")])

    with pytest.raises(MintError, match="ZeroDivisionError: oops") as error:
        cache.get_blocking(CHAT)

    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_c8_a_notice_bans_exactly_the_credential_it_names():
    """C8: a received notice drops that id and no other, and the id never comes back."""
    cache, minter, *_ = make()
    held = cache.get_blocking(CHAT)
    notice = Notice(slot=CHAT, credential_id="other", reason="x", pid=1, at=0.0)

    assert not cache.receive(notice)
    assert cache.peek(CHAT) is held

    dead = Notice.from_dict({**notice.to_dict(), "credential_id": held.id})
    assert cache.receive(dead)
    assert not cache.receive(dead)
    assert cache.get_blocking(CHAT).id != held.id
    assert len(minter.slots) == 2


def test_c8_a_notice_without_a_slot_drops_everything():
    """C11: a reset elsewhere reaches this process by its notice."""
    cache, *_ = make()
    cache.get_blocking(CHAT)

    assert cache.receive(Notice(slot=None, credential_id=None, reason="reset", pid=1, at=0.0))
    assert cache.peek(CHAT) is None


def test_c8_the_ban_list_is_bounded():
    """C8: a process that sees a million credentials fail does not remember a million."""
    cache, *_ = make()

    for number in range(5000):
        cache.receive(Notice(slot=CHAT, credential_id=str(number), reason="x", pid=1, at=0.0))

    assert len(cache._local._bans) == 1024


def test_c8_the_store_is_looked_at_again_after_ten_seconds():
    """C8: a process that missed a notice learns of a newer credential within 10 s."""
    cache, minter, clock, *_ = make()
    held = cache.get_blocking(CHAT)

    clock.advance(9.9)
    assert cache.peek(CHAT) is held
    clock.advance(0.2)
    assert cache.peek(CHAT) is None
    assert cache.get_blocking(CHAT) == held
    assert len(minter.slots) == 1


def test_a_credential_is_not_used_past_its_age():
    """A credential that ran out is replaced, and never served between two looks."""
    cache, minter, clock, *_ = make(max_age=15)
    first = cache.get_blocking(CHAT)
    clock.advance(10)
    assert cache.get_blocking(CHAT) == first

    clock.advance(5)

    assert cache.peek(CHAT) is None
    assert cache.get_blocking(CHAT).id != first.id
    assert len(minter.slots) == 2


def test_the_entries_of_finished_runs_are_dropped():
    """A worker that serves thousands of runs does not keep every credential it has used."""
    cache, _, clock, *_ = make()
    for number in range(3000):
        cache.get_blocking(Slot.run(f"run-{number}", "chat"))
        clock.advance(0.1)

    assert len(cache._local.entries) <= 1024


def test_c12_everything_that_happens_is_an_event_and_a_count():
    """C12: mint, share and eviction are told with the slot and never with the token."""
    cache, _, clock, events, _ = make()
    held = cache.get_blocking(CHAT)
    clock.advance(11)
    cache.get_blocking(CHAT)
    cache.evict_blocking(CHAT, held.id, reason="r")

    assert names(events) == ["credential.minted", "credential.shared", "credential.evicted"]
    assert all(str(CHAT) == event.fields["slot"] for event in events)
    assert held.access_token not in repr(events)
    assert cache.stats["credential.minted"] == 1


def test_c12_a_broken_handler_does_not_undo_a_mint(caplog):
    """C12: an event handler that raises is logged, and the credential is there all the same."""

    def broken(_):
        raise RuntimeError("no disk for logs")

    cache = InMemoryCredentialCache(ScriptedMinter(), on_event=broken, on_notice=broken)

    held = cache.get_blocking(CHAT)

    assert cache.evict_blocking(CHAT, held.id, reason="r")
    assert "no disk for logs" in caplog.text


def test_c13_the_first_young_death_is_free_and_the_next_ones_back_off():
    """C13: credentials that die within 30 s of their mint back off from the second on."""
    cache, minter, clock, *_ = make()
    for _ in range(2):
        cache.evict_blocking(CHAT, cache.get_blocking(CHAT).id, reason="oversize")

    with pytest.raises(CredentialBackoffError, match="keep being evicted"):
        cache.get_blocking(CHAT)

    assert len(minter.slots) == 2
    clock.advance(0.25)
    cache.evict_blocking(CHAT, cache.get_blocking(CHAT).id, reason="oversize")
    clock.advance(0.2)
    with pytest.raises(CredentialBackoffError):
        cache.get_blocking(CHAT)


def test_c13_a_credential_that_lived_starts_the_count_over():
    """C13: an eviction after 30 s is no churn, whatever came before."""
    cache, _, clock, *_ = make()
    cache.evict_blocking(CHAT, cache.get_blocking(CHAT).id, reason="a")
    held = cache.get_blocking(CHAT)
    clock.advance(31)

    cache.evict_blocking(CHAT, held.id, reason="b")
    cache.evict_blocking(CHAT, cache.get_blocking(CHAT).id, reason="c")

    assert cache.get_blocking(CHAT)


def test_c13_the_token_that_was_refused_is_not_handed_out_again():
    """C13: a mint that returns the refused token is an error for its caller, not a resend loop."""
    same = make_grant(CHAT, 7)
    cache, minter, _, events, _ = make([same, same])
    held = cache.get_blocking(CHAT)
    cache.evict_blocking(CHAT, held.id, reason="403", refused=True)

    with pytest.raises(CredentialUnchangedError) as error:
        cache.get_blocking(CHAT)

    assert not error.value.retryable
    assert names(events)[-2:] == ["credential.remint_unchanged", "credential.mint_failed"]
    assert len(minter.slots) == 2


def test_c13_a_refused_token_that_stays_the_same_is_tried_again_later():
    """C13: a token refused for something that passes is usable again, at a bounded rate."""
    same = make_grant(CHAT, 7)
    cache, minter, _, _, _ = make([same] * 100)
    for _ in range(50):
        try:
            held = cache.get_blocking(CHAT)
        except MintError:
            continue
        cache.evict_blocking(CHAT, held.id, reason="403", refused=True)

    assert 3 <= len(minter.slots) <= 6


def test_c13_the_same_token_is_fine_after_a_local_failure():
    """C13: an oversize record evicts too, but does not make the token a refused one."""
    same = make_grant(CHAT, 7)
    cache, *_ = make([same, same])
    held = cache.get_blocking(CHAT)
    cache.evict_blocking(CHAT, held.id, reason="oversize")

    assert same.access_token == cache.get_blocking(CHAT).access_token


def test_a_minter_that_asks_the_cache_is_stopped():
    """A mint that needs another slot's credential would deadlock two processes; it raises."""
    minter = ScriptedMinter([lambda slot: cache.get_blocking(Slot.run("run-2", "x"))])
    cache = InMemoryCredentialCache(minter)

    with pytest.raises(MintError, match="would deadlock"):
        cache.get_blocking(CHAT)


def test_a_slow_answer_does_not_lengthen_a_life():
    """A credential's age counts from the moment the PUT was sent."""
    clock = FrozenClock(1000.0)

    def slow(slot):
        clock.advance(9)
        return make_grant(slot)

    cache = InMemoryCredentialCache(ScriptedMinter([slow]), clock=clock.clock, max_age=100)

    assert cache.get_blocking(CHAT).expires_at == 1100.0


def test_a_pause_from_before_a_set_back_clock_is_not_waited_for():
    """A clock that was set back by a day does not turn a short pause into a day."""
    cache, _, clock, *_ = make([MintError("a", retry_after=1.0)])
    with pytest.raises(MintError):
        cache.get_blocking(CHAT)

    clock.advance(-86400)

    assert cache.get_blocking(CHAT)
