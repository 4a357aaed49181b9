"""One mint on its way, and everybody in this process who waits for it.

What a flight does is a generator of steps: it yields a number of seconds to let pass, or a slot to
mint. Two small drivers run the same steps, one on an event loop and one in a plain thread, so there
is one truth about what happens under which lock.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent import futures
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from typing import Generic, TypeVar

from td_sharedcache.credential import Grant
from td_sharedcache.errors import MintError
from td_sharedcache.forks import GUARD
from td_sharedcache.minter import AsyncMinter, Minter
from td_sharedcache.slot import Slot

T = TypeVar("T")
Steps = Generator[float | Slot, Grant | None, T]

_GLANCE = 0.5
"""Seconds between two looks at whether the loop of somebody else's flight is still there."""

_minting: ContextVar[bool] = ContextVar("td_sharedcache_minting", default=False)


class FlightAbandonedError(Exception):
    """Whoever flew is gone; the waiters start over."""


class Flight(Generic[T]):
    """A mint that callers of any thread and loop wait for.

    A waiter that is cancelled leaves; the flight goes on. A flight whose own loop is closed is
    ended by the next waiter that looks, and frees its lock.
    """

    def __init__(self, steps: Steps[T], retire: Callable[[Flight[T]], None]) -> None:
        self._steps = steps
        self._retire = retire
        self._landed: futures.Future[T] = futures.Future()
        # Nobody can cancel a running future: a cancelled waiter must not take the others along.
        self._landed.set_running_or_notify_cancel()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def launch(self, minter: AsyncMinter | Minter, deadline: float) -> None:
        """Fly in a task of its own on the running loop.

        Raises:
            RuntimeError: No loop is running in this thread.
        """
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._fly(minter, deadline))

    def fly_blocking(self, minter: AsyncMinter | Minter, deadline: float) -> None:
        """Fly in this thread."""
        with self._landing():
            self._land(drive_blocking(self._steps, minter, deadline))

    async def wait(self, bound: float) -> None:
        """Wait until the flight has landed, its loop is gone, or `bound` seconds have passed."""
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        self._landed.add_done_callback(lambda _: _wake(loop, woken))
        end = loop.time() + bound
        while not self._landed.done() and loop.time() < end and not self.end_if_orphaned():
            await asyncio.wait({woken}, timeout=min(_GLANCE, bound))

    def wait_blocking(self, bound: float) -> None:
        """Wait as `wait` does, in a plain thread."""
        end = time.monotonic() + bound
        while not self._landed.done() and time.monotonic() < end and not self.end_if_orphaned():
            futures.wait([self._landed], timeout=min(_GLANCE, bound))

    def has_landed(self) -> bool:
        """Tell whether there is a result."""
        return self._landed.done()

    def result(self) -> T:
        """Give what the flight brought, or raise what the flight raised.

        Raises:
            MintError: The mint failed.
            FlightAbandonedError: Nobody flies any more.
        """
        return self._landed.result(timeout=0)

    def end_if_orphaned(self) -> bool:
        """End a flight whose loop was closed under it, so that its lock is free again."""
        if self._loop is None or not self._loop.is_closed():
            return False

        with GUARD:
            self._steps.close()
            self._fail(FlightAbandonedError())

        return True

    async def _fly(self, minter: AsyncMinter | Minter, deadline: float) -> None:
        with self._landing():
            self._land(await drive(self._steps, minter, deadline))

    @contextmanager
    def _landing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  every waiter raises it
            self._fail(error)
        except BaseException:
            # Cancelled with its loop, or interrupted: no reason for anybody else to fail.
            self._fail(FlightAbandonedError())
            raise

    def _land(self, outcome: T) -> None:
        # Retired first: whoever sees the result and calls again must not find this flight.
        with GUARD:
            self._retire(self)
            if not self._landed.done():
                self._landed.set_result(outcome)

    def _fail(self, error: Exception) -> None:
        with GUARD:
            self._retire(self)
            if not self._landed.done():
                self._landed.set_exception(error)


async def drive(steps: Steps[T], minter: AsyncMinter | Minter, deadline: float) -> T:
    """Run steps on the running loop; a mint may take `deadline` seconds."""
    with closing(steps):
        try:
            step = next(steps)
            while True:
                if not isinstance(step, Slot):
                    await asyncio.sleep(step)
                    step = next(steps)
                    continue
                try:
                    grant = await _mint(minter, step, deadline)
                except MintError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(grant)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration is not generic


def drive_blocking(steps: Steps[T], minter: AsyncMinter | Minter, deadline: float) -> T:
    """Run steps in this thread; a mint may take `deadline` seconds."""
    with closing(steps):
        try:
            step = next(steps)
            while True:
                if not isinstance(step, Slot):
                    time.sleep(step)
                    step = next(steps)
                    continue
                try:
                    grant = _mint_blocking(minter, step, deadline)
                except MintError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(grant)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration is not generic


def refuse_inside_mint() -> None:
    """Raise if called by a minter: it holds one slot's lock and would wait for another's."""
    if _minting.get():
        raise RuntimeError("a minter must not ask the cache for a credential: it would deadlock")


async def _mint(minter: AsyncMinter | Minter, slot: Slot, deadline: float) -> Grant:
    with _mint_errors(slot):
        if not inspect.iscoroutinefunction(minter.mint):
            return await asyncio.to_thread(_call_blocking, minter, slot)
        async with asyncio.timeout(deadline):
            return await _await(minter.mint(slot))


def _mint_blocking(minter: AsyncMinter | Minter, slot: Slot, deadline: float) -> Grant:
    if inspect.iscoroutinefunction(minter.mint):
        return asyncio.run(_mint(minter, slot, deadline))

    with _mint_errors(slot):
        return _call_blocking(minter, slot)


def _call_blocking(minter: AsyncMinter | Minter, slot: Slot) -> Grant:
    grant = minter.mint(slot)
    if not isinstance(grant, Grant):
        raise TypeError(f"mint() must return a Grant, got {type(grant).__name__}")

    return grant


async def _await(answer: Awaitable[Grant] | Grant) -> Grant:
    return answer if isinstance(answer, Grant) else await answer


@contextmanager
def _mint_errors(slot: Slot) -> Iterator[None]:
    """Turn whatever a minter raises into a `MintError`, the cause kept."""
    token = _minting.set(True)
    try:
        yield
    except MintError:
        raise
    except TimeoutError as error:
        raise MintError(
            f"the control plane did not answer for {slot} in time", retryable=True
        ) from error
    except Exception as error:
        raise MintError(f"minting {slot} failed: {type(error).__name__}: {error}") from error
    finally:
        _minting.reset(token)


def _wake(loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
    # A waiter's loop may be closed by now; nobody is left there to wake.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, woken)


def _settle(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
