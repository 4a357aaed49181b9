"""The one stream client of a process: all appenders, and the way onto the runtime loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import structlog

from td_sharedcache.slot import Slot
from td_worker.control_plane import ControlPlane
from td_worker.errors import ControlPlaneError, StreamClosedError
from td_worker.opened import OpenedStreams
from td_worker.streams.appender import Appender
from td_worker.streams.buffer import Budget
from td_worker.streams.canonical import CanonicalCredentials
from td_worker.streams.delivery import Credentials, Delivery, Store
from td_worker.streams.lane import Lane
from td_worker.streams.policy import StreamLimits
from td_worker.streams.reader import Feed, run_read_error
from td_worker.streams.subscription import Subscription

if TYPE_CHECKING:
    from td_worker.context import Execution

log = structlog.get_logger()

T = TypeVar("T")


class StreamClient:
    """
    Everything streams need in one worker process.

    Made on any thread after the fork; its work is done on `loop`, the runtime loop, which must be
    running in a thread of its own and outlive it. `cache`, `store` and `control_plane` live on that
    loop and are closed by who made them.

    Args:
        loop: The runtime loop.
        cache: The credential cache.
        store: The stream store.
        control_plane: Where streams are read and sessions are kept.
        limits: Bounds of the write path.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        cache: Credentials,
        store: Store,
        control_plane: ControlPlane,
        limits: StreamLimits | None = None,
    ) -> None:
        self._loop = loop
        self._cache = CanonicalCredentials(cache, control_plane)
        self._store = store
        self.control_plane = control_plane
        """For calls made on the runtime loop."""
        self._limits = limits or StreamLimits()
        self._lock = Lock()
        self._budget = Budget(self._limits.process_bytes)
        self._appenders: WeakValueDictionary[Slot, Appender] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- any thread ----------------------------------------------------------------------------

    def open(self, slot: Slot, opened: OpenedStreams | None = None) -> Lane:
        """
        Return a new writer's lane into `slot`; `opened`, when given, watches it until it settles.

        Raises:
            StreamClosedError: The worker is stopping.
        """
        self._check_open()
        lane = Lane(self._appender(slot))
        if opened is not None:
            opened.add(lane)

        return lane

    def read(self, run_id: str, key: str, *, last_event_id: str | None, timeout_s: int) -> Feed:
        """Return the parts of a run's stream, to be pulled from any thread."""
        subscription = Subscription(
            lambda cursor: self.control_plane.open_run_stream(
                run_id, key, last_event_id=cursor, timeout_s=timeout_s
            ),
            last_event_id=last_event_id,
        )

        return self.follow(subscription, run_read_error(run_id, key))

    def follow(
        self, subscription: Subscription, translate: Callable[[ControlPlaneError], Exception]
    ) -> Feed:
        """
        Return the parts of any subscription, to be pulled from any thread.

        Args:
            subscription: Not started yet.
            translate: Makes the error that the puller sees from the control plane's.

        Raises:
            StreamClosedError: The worker is stopping.
        """
        self._check_open()

        return Feed(self, subscription, translate)

    async def drain(
        self,
        execution: Execution,
        timeout: float,
    ) -> int:
        """
        Get acked what `execution` has written; after `timeout` seconds give up the rest.

        Never raises because of a stream.

        Returns:
            How many records were lost.
        """
        if not execution.has_streams:
            return 0
        streams = len(execution.opened)
        lost = await execution.opened.drain(timeout)
        if streams:
            log.debug("stream.drained", streams=streams, records_lost=lost)
        if lost:
            log.error("stream.records_lost", records=lost)

        return lost

    # --- for appenders and readers -------------------------------------------------------------

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` on the runtime loop."""
        if self._closed or self._loop.is_closed():
            work.close()
            raise StreamClosedError("the worker is stopping: its streams are closed")

        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` on the runtime loop, soon."""
        self._check_open()
        self._loop.call_soon_threadsafe(function)

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """On the runtime loop: run `work` as a task that `close` waits for."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def credential_id(self, slot: Slot) -> str | None:
        """Return the id of the slot's current credential, None when there is none at hand."""
        credential = self._cache.peek(slot)

        return credential.id if credential is not None else None

    async def evict(self, slot: Slot, credential_id: str, *, reason: str) -> None:
        """Evict the slot's credential if it is still that one."""
        await self._cache.evict(slot, credential_id, reason=reason)

    # --- runtime loop --------------------------------------------------------------------------

    async def close(self, timeout: float = 5.0) -> None:
        """Send what is buffered; after `timeout` seconds give up the rest. For the runtime loop."""
        deadline = self._loop.time() + timeout
        while self._tasks and (left := deadline - self._loop.time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        self._closed = True
        late = set(self._tasks)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _appender(self, slot: Slot) -> Appender:
        with self._lock:
            appender = self._appenders.get(slot)
            if appender is None:
                appender = self._appenders[slot] = self._new_appender(slot)

        return appender

    def _new_appender(self, slot: Slot) -> Appender:
        delivery = Delivery(slot, credentials=self._cache, store=self._store, limits=self._limits)

        return Appender(
            slot,
            client=self,
            delivery=delivery,
            budget=self._budget,
            lock=self._lock,
            limits=self._limits,
        )

    def _check_open(self) -> None:
        if self._closed or self._loop.is_closed():
            raise StreamClosedError("the worker is stopping: its streams are closed")
