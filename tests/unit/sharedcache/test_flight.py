"""One mint at a time, and everybody who waits for it: tasks, loops and threads of one process."""

import asyncio
import threading

import pytest

from td_sharedcache import CacheEvent, MintError, Policy, Slot
from td_sharedcache.testing import (
    FrozenClock,
    InMemoryCredentialCache,
    ScriptedMinter,
    make_grant,
)

CHAT = Slot.run("run-1", "chat")


class GatedMinter:
    """A minter that says when it was called and answers when let."""

    def __init__(self, error=None):
        self.started = threading.Event()
        self.go = threading.Event()
        self.calls = 0
        self.error = error

    def mint(self, slot):
        self.calls += 1
        self.started.set()
        assert self.go.wait(30)
        if self.error:
            raise self.error
        return make_grant(slot, self.calls)


class AsyncGatedMinter:
    """The same on a loop."""

    def __init__(self):
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.calls = 0

    async def mint(self, slot):
        self.calls += 1
        self.started.set()
        await self.go.wait()
        return make_grant(slot, self.calls)


async def joined(cache, slot, tasks):
    """Let tasks run until each waits for the slot's flight."""
    while len(cache._flights[slot]._landed._done_callbacks) < tasks:
        await asyncio.sleep(0)


def in_thread(work):
    """Run work in a thread; gives the thread and a list that will hold its outcome."""
    outcome = []

    def run():
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    return thread, outcome


async def test_c1_a_thousand_tasks_share_one_put():
    """C1: all tasks of a loop that find the slot empty wait for one PUT."""
    minter = AsyncGatedMinter()
    cache = InMemoryCredentialCache(minter)
    tasks = [asyncio.create_task(cache.get(CHAT)) for _ in range(1000)]
    await minter.started.wait()
    await joined(cache, CHAT, 1000)
    minter.go.set()

    found = await asyncio.gather(*tasks)

    assert len({credential.id for credential in found}) == 1
    assert minter.calls == 1


def test_c1_threads_and_loops_share_one_put():
    """C1: a plain thread's mint serves tasks on two other threads' loops."""
    minter = GatedMinter()
    cache = InMemoryCredentialCache(minter)
    first, one = in_thread(lambda: cache.get_blocking(CHAT))
    assert minter.started.wait(30)
    second, two = in_thread(lambda: asyncio.run(cache.get(CHAT)))
    third, three = in_thread(lambda: asyncio.run(cache.get(CHAT)))
    minter.go.set()
    for thread in (first, second, third):
        thread.join(30)

    assert one[0] == two[0] == three[0]
    assert minter.calls == 1


async def test_c5_every_waiter_of_the_process_gets_the_error():
    """C5: a failed PUT reaches all tasks that waited for it; nobody sends another."""
    error = MintError("down", status=503, retryable=True)
    minter = GatedMinter(error)
    cache = InMemoryCredentialCache(minter)
    tasks = [asyncio.create_task(cache.get(CHAT)) for _ in range(10)]
    await asyncio.to_thread(minter.started.wait, 30)
    await joined(cache, CHAT, 10)
    minter.go.set()

    assert [error] * 10 == await asyncio.gather(*tasks, return_exceptions=True)
    assert minter.calls == 1


async def test_a_cancelled_caller_does_not_cancel_the_flight():
    """The caller that started a mint may leave; the others get its answer."""
    minter = AsyncGatedMinter()
    cache = InMemoryCredentialCache(minter)
    starter = asyncio.create_task(cache.get(CHAT))
    await minter.started.wait()
    other = asyncio.create_task(cache.get(CHAT))
    await joined(cache, CHAT, 2)

    starter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starter
    minter.go.set()

    assert (await other).access_token == "token-1-run/run-1/chat"
    assert minter.calls == 1


async def test_a_flight_whose_callers_all_left_still_lands():
    """The answer of a PUT that nobody waits for any more is kept for the next caller."""
    minter = AsyncGatedMinter()
    cache = InMemoryCredentialCache(minter)
    starter = asyncio.create_task(cache.get(CHAT))
    await minter.started.wait()
    flight = cache._flights[CHAT]

    starter.cancel()
    await asyncio.wait([starter])
    minter.go.set()
    await flight.wait(30)

    assert cache.peek(CHAT) is not None


def test_a_loop_that_ends_in_mid_flight_leaves_the_mint_to_the_others():
    """asyncio.run() that is over cancels its flight; a waiting thread mints by itself."""
    entered = threading.Event()

    class Minter:
        async def mint(self, slot):
            if not entered.is_set():
                entered.set()
                await asyncio.Event().wait()
            return make_grant(slot)

    cache = InMemoryCredentialCache(Minter())
    leave = threading.Event()

    async def start_and_leave():
        task = asyncio.create_task(cache.get(CHAT))
        await asyncio.to_thread(leave.wait, 30)
        del task

    first, _ = in_thread(lambda: asyncio.run(start_and_leave()))
    assert entered.wait(30)
    second, got = in_thread(lambda: cache.get_blocking(CHAT))
    leave.set()
    first.join(30)
    second.join(30)

    assert make_grant(CHAT).access_token == got[0].access_token


def test_a_loop_that_is_closed_in_mid_flight_does_not_hang_the_others():
    """A loop closed without a word frees the flight at the next look of anybody else."""
    minter = AsyncGatedMinter()
    cache = InMemoryCredentialCache(minter)
    loop = asyncio.new_event_loop()
    starter = loop.create_task(cache.get(CHAT))
    loop.run_until_complete(minter.started.wait())
    orphan = cache._flights[CHAT]
    loop.close()

    minter.go = asyncio.Event()
    minter.go.set()
    assert cache.get_blocking(CHAT)

    assert minter.calls == 2
    assert orphan.has_landed()
    assert not starter.done()


def test_an_interrupted_mint_is_nobody_else_s_error():
    """KeyboardInterrupt in one thread's mint leaves slot and lock free for the next caller."""

    class Minter(ScriptedMinter):
        def mint(self, slot):
            if not self.slots:
                self.slots.append(slot)
                raise KeyboardInterrupt
            return super().mint(slot)

    cache = InMemoryCredentialCache(Minter())

    with pytest.raises(KeyboardInterrupt):
        cache.get_blocking(CHAT)

    assert cache.get_blocking(CHAT)


async def test_a_mint_past_its_deadline_is_a_retryable_error():
    """C9: a control plane that does not answer is given up at the deadline, connection closed."""
    closed = []

    class Minter:
        async def mint(self, slot):
            try:
                await asyncio.Event().wait()
            finally:
                closed.append(slot)

    cache = InMemoryCredentialCache(Minter(), policy=Policy(mint_deadline=0.01))

    with pytest.raises(MintError, match="did not answer") as error:
        await cache.get(CHAT)

    assert error.value.retryable
    assert closed == [CHAT]


def test_an_async_minter_serves_a_plain_thread():
    """get_blocking() runs an async minter on a loop of its own."""

    class Minter:
        async def mint(self, slot):
            await asyncio.sleep(0)
            return make_grant(slot)

    assert InMemoryCredentialCache(Minter()).get_blocking(CHAT)


def test_c7_a_refresh_runs_beside_its_caller():
    """C7: past refresh_at the caller gets the old credential at once, the next look the new one."""
    clock, minter = FrozenClock(), GatedMinter()
    events: list[CacheEvent] = []
    cache = InMemoryCredentialCache(
        minter, clock=clock.clock, max_age=1000.0, on_event=events.append
    )
    minter.go.set()
    old = cache.get_blocking(CHAT)
    minter.go.clear()
    minter.started.clear()
    clock.advance(905)

    assert cache.get_blocking(CHAT) == old
    assert minter.started.wait(30)
    refresh = cache._refreshes[CHAT]
    assert cache.peek(CHAT) == old
    clock.advance(11)
    assert cache.get_blocking(CHAT) == old
    assert minter.calls == 2

    minter.go.set()
    refresh.wait_blocking(30)
    assert cache.get_blocking(CHAT).id != old.id
    assert events[-1].name == "credential.refreshed"
    assert not cache._refreshes


async def test_c7_a_failed_refresh_keeps_the_credential_and_waits():
    """C7: a control plane that is down at refresh time costs nobody anything until the end."""
    clock = FrozenClock()
    events: list[CacheEvent] = []
    minter = ScriptedMinter([make_grant(CHAT), MintError("down", retry_after=30.0)])
    cache = InMemoryCredentialCache(
        minter, clock=clock.clock, max_age=1000.0, on_event=events.append
    )
    old = await cache.get(CHAT)
    clock.advance(905)

    assert await cache.get(CHAT) == old
    await cache._refreshes[CHAT].wait(30)
    assert events[-1].name == "credential.mint_failed"
    clock.advance(25)
    assert await cache.get(CHAT) == old
    assert not cache._refreshes
    clock.advance(11)
    assert await cache.get(CHAT) == old
    await cache._refreshes[CHAT].wait(30)

    assert (await cache.get(CHAT)).id != old.id
    assert len(minter.slots) == 3


async def test_c7_a_refresh_does_not_bring_back_what_was_reset_meanwhile():
    """C7, C11: a credential refreshed across a reset() is dropped, and the next call PUTs."""
    clock, minter = FrozenClock(), AsyncGatedMinter()
    cache = InMemoryCredentialCache(minter, clock=clock.clock, max_age=1000.0)
    minter.go.set()
    await cache.get(CHAT)
    minter.go.clear()
    minter.started.clear()
    clock.advance(905)
    await cache.get(CHAT)
    await minter.started.wait()
    refresh = cache._refreshes[CHAT]

    await cache.reset()
    minter.go.set()
    await refresh.wait(30)

    assert cache.peek(CHAT) is None
    assert (await cache.get(CHAT)).access_token == "token-3-run/run-1/chat"


async def test_c11_a_mint_does_not_survive_a_reset_in_its_middle():
    """C11: what was PUT before a reset() is not installed after it; its caller gets a new one."""
    minter = AsyncGatedMinter()
    cache = InMemoryCredentialCache(minter)
    caller = asyncio.create_task(cache.get(CHAT))
    await minter.started.wait()

    await cache.reset()
    minter.go.set()

    assert (await caller).access_token == "token-2-run/run-1/chat"


async def test_c3_an_eviction_beside_a_look_is_not_undone():
    """C3: a credential banned between its load and its use is not kept."""
    cache = InMemoryCredentialCache(ScriptedMinter())
    held = await cache.get(CHAT)
    cache._local.ban(CHAT, held.id)

    cache._local.keep(held, cache._local.era)

    assert cache.peek(CHAT) is None


def test_a_mint_that_is_stuck_in_this_process_is_not_waited_for_for_ever():
    """C9: when a flight outlives every bound, a waiter goes alone, and says so in one event."""
    minter, events = GatedMinter(), []
    policy = Policy(lock_wait=0.0, mint_deadline=0.0, store_wait=0.0)
    cache = InMemoryCredentialCache(minter, policy=policy, on_event=lambda e: events.append(e.name))
    stuck, first = in_thread(lambda: cache.get_blocking(CHAT))
    assert minter.started.wait(30)
    minter.started.clear()

    waiter, second = in_thread(lambda: cache.get_blocking(CHAT))
    assert minter.started.wait(30)
    minter.go.set()
    stuck.join(30)
    waiter.join(30)

    assert first[0].id != second[0].id
    assert events.count("cache.degraded") == 1
    assert minter.calls == 2
