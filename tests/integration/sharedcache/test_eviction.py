"""Dead credentials: taken away once, from everybody, and never a newer one."""

from td_sharedcache import CacheEvent, Notice, Slot
from td_sharedcache.testing import FrozenClock
from tests.integration.sharedcache.processes import Child, MarkingMinter, open_cache

CHAT = Slot.run("run-1", "chat")


def test_c3_a_late_failure_in_another_process_evicts_nothing(tmp_path, pipe, caches):
    """C3: a process that still fails with the old credential leaves the new one alone."""
    minter = MarkingMinter(tmp_path)
    holding, renewed = pipe(), pipe()

    def late():
        notices: list[Notice] = []
        cache = open_cache(tmp_path, minter, on_notice=notices.append)
        old = cache.get_blocking(CHAT)
        holding.say()
        renewed.wait()
        hit = cache.evict_blocking(CHAT, old.id, reason="late")
        return [hit, len(notices), cache.get_blocking(CHAT).id]

    child = Child(late)
    holding.wait()
    cache = caches(open_cache(tmp_path, minter))
    assert cache.evict_blocking(CHAT, cache.get_blocking(CHAT).id, reason="first")
    current = cache.get_blocking(CHAT)
    renewed.say()

    assert [False, 0, current.id] == child.result()
    assert cache.get_blocking(CHAT) is current
    assert minter.count == 2


def test_c4_n_processes_that_fail_together_send_one_put_and_one_notice(tmp_path, pipe, caches):
    """C4, C8: 12 processes fail with one credential: one replacement, one of them tells."""
    minter = MarkingMinter(tmp_path, seconds=0.05)
    cache = caches(open_cache(tmp_path, minter))
    holding, fail = pipe(), pipe()

    def work():
        notices: list[Notice] = []
        mine = open_cache(tmp_path, minter, on_notice=notices.append)
        held = mine.get_blocking(CHAT)
        holding.say()
        fail.wait()
        hit = mine.evict_blocking(CHAT, held.id, reason="401", refused=True)
        return [hit, len(notices), held.id, mine.get_blocking(CHAT).id]

    children = [Child(work) for _ in range(12)]
    holding.wait(12)
    fail.say(12)
    results = [child.result() for child in children]

    assert sum(hit for hit, *_ in results) == 1
    assert all(hit == notices for hit, notices, *_ in results)
    assert len({old for _, _, old, _ in results}) == 1
    assert {cache.get_blocking(CHAT).id} == {new for *_, new in results}
    assert minter.count == 2


def test_c4_processes_that_fail_one_after_another_send_one_put(tmp_path, pipe):
    """C4: failures spread over time, each after the one before has renewed: still one PUT."""
    minter = MarkingMinter(tmp_path)
    holding, fail = pipe(), [pipe() for _ in range(5)]

    def work(turn):
        cache = open_cache(tmp_path, minter)
        held = cache.get_blocking(CHAT)
        holding.say()
        turn.wait()
        cache.evict_blocking(CHAT, held.id, reason="401")
        return cache.get_blocking(CHAT).id

    children = [Child(lambda turn=turn: work(turn)) for turn in fail]
    holding.wait(5)
    ids = set()
    for turn, child in zip(fail, children, strict=True):
        turn.say()
        ids.add(child.result())

    assert len(ids) == 1
    assert minter.count == 2


def test_c8_a_process_that_missed_the_notice_finds_the_newer_credential(tmp_path, caches):
    """C8: without any broadcast a process changes over at its next look, at most 10 s later."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    cache = caches(open_cache(tmp_path, minter, clock=clock.clock))
    old = cache.get_blocking(CHAT)

    def renew():
        mine = open_cache(tmp_path, minter, clock=clock.clock)
        mine.evict_blocking(CHAT, old.id, reason="401")
        return mine.get_blocking(CHAT).id

    newer = Child(renew).result()

    assert old.id == cache.get_blocking(CHAT).id
    clock.advance(10)
    assert newer == cache.get_blocking(CHAT).id
    assert minter.count == 2


def test_c11_reset_drops_everything_for_every_process(tmp_path, caches):
    """C11: after a reset elsewhere and its notice, the next call PUTs, for every slot."""
    minter = MarkingMinter(tmp_path)
    cache = caches(open_cache(tmp_path, minter))
    slots = [Slot.run("run-1", str(number)) for number in range(3)]
    held = {cache.get_blocking(slot).id for slot in slots}

    def reset():
        notices: list[Notice] = []
        open_cache(tmp_path, minter, on_notice=notices.append).reset_blocking()
        return [notice.to_dict() for notice in notices]

    (notice,) = Child(reset).result()
    assert notice["slot"] is None

    assert cache.receive(Notice.from_dict(notice))
    assert held.isdisjoint(cache.get_blocking(slot).id for slot in slots)
    assert minter.count == 6


def test_c11_a_mint_under_way_does_not_survive_a_reset(tmp_path, pipe):
    """C11: a PUT sent before the reset is not installed after it; its caller PUTs again."""
    started, go = pipe(), pipe()
    slow, minter = MarkingMinter(tmp_path, started=started, go=go), MarkingMinter(tmp_path)

    child = Child(lambda: open_cache(tmp_path, slow).get_blocking(CHAT).access_token)
    started.wait()
    Child(lambda: open_cache(tmp_path, minter).reset_blocking()).result()
    go.say(2)

    assert child.result().startswith("token-2-")


def test_c7_one_process_refreshes_for_all(tmp_path, pipe):
    """C7: past refresh_at of 6 processes one mints; all others go on with the old credential."""
    minter, clock = MarkingMinter(tmp_path), FrozenClock()
    Child(lambda: open_cache(tmp_path, minter, clock=clock.clock).get_blocking(CHAT).id).result()
    clock.advance(0.95 * 6 * 3600)
    started, go, looked = pipe(), pipe(), pipe()
    slow = MarkingMinter(tmp_path, started=started, go=go)

    def work():
        events: list[CacheEvent] = []
        cache = open_cache(tmp_path, slow, clock=clock.clock, on_event=events.append)
        found = cache.get_blocking(CHAT)
        flight = cache._refreshes.get(CHAT)
        looked.say()
        if flight is not None:
            flight.wait_blocking(30)
        names = [event.name for event in events]
        return [found.access_token.split("-")[1], "credential.refreshed" in names]

    children = [Child(work)]
    started.wait()
    children += [Child(work) for _ in range(5)]
    looked.wait(6)
    go.say()
    results = [child.result() for child in children]

    assert {"1"} == {number for number, _ in results}
    assert sum(refreshed for _, refreshed in results) == 1
    assert minter.count == 2
