"""
A subscription to a stream by server-sent events: reconnects, resumes, hides what was sent twice.

It asks the opener it is given for one connection after the other, so run streams, session channels
and input streams are all read by this one class.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
from httpx_sse import ServerSentEvent

from td_worker.control_plane import SseBody
from td_worker.errors import ControlPlaneError, ControlPlaneUnreachableError
from td_worker.streams.parts import Part, parse_event
from td_worker.streams.policy import backoff
from td_worker.streams.seen import Seen

log = structlog.get_logger()

T = TypeVar("T")

Opener = Callable[[str | None], AbstractAsyncContextManager[SseBody]]
"""Opens one connection that begins after the given event id, or at the beginning for None.

Entering it must raise a `ControlPlaneError` for anything but an answer of 2xx, and so must reading
its events when the connection breaks. `ControlPlane.open_run_stream` is one, its other arguments
bound.
"""

_NEVER_RETRIED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPolicy:
    """When a subscription connects again; the official SDK's numbers. Times are seconds."""

    retry_base: float = 0.1
    """The first back-off; it doubles with every failure in a row."""
    retry_cap: float = 5.0
    """The longest back-off."""
    retry_jitter: float = 0.5
    """A back-off is cut by a random part of itself, this much at most."""
    max_retries: int | None = None
    """Failures in a row after which the last one is raised; None for no end."""
    header_timeout: float = 30.0
    """How long the answer's headers may take."""
    stall_timeout: float | None = None
    """How long a body may say nothing at all, S2's pings included; None for as long as it likes."""
    not_retried: frozenset[int] = frozenset({400, 404, 409, 410, 422})
    """Statuses that are raised at once, besides 401 and 403."""


class Subscription:
    """
    A stream's parts over as many connections as it takes, each once, in order.

    ```python
    subscription = Subscription(
        lambda cursor: plane.open_run_stream(run_id, key, last_event_id=cursor, timeout_s=60)
    )
    async for parts in subscription.batches():
        ...
    ```

    States: it connects; items flow; a failure (no answer, an answer worth a retry, no headers in
    time, a stall, `force_reconnect`) leads to a back-off and a new connection from `cursor`; a
    final status is raised; a body that ends cleanly ends `batches`, and so does closing it.
    Nothing is read from the connection before somebody asks for the next batch, so a slow reader
    holds back the server and no memory fills up.

    A tail that outlives clean ends, which the server makes after the asked-for time of silence,
    calls `batches` again: `cursor` and the window of ids that were seen stay.

    It belongs to one loop, and all methods with it.

    Args:
        opener: Opens one connection.
        last_event_id: Begin after this event; None for the beginning.
        policy: When to connect again.
        on_control: Given the control records, which `batches` then leaves out. Called on the loop,
            in order among the batches; what it raises ends `batches`. None leaves them in.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        last_event_id: str | None = None,
        policy: ReadPolicy | None = None,
        on_control: Callable[[Part], None] | None = None,
    ) -> None:
        self._opener = opener
        self._policy = policy or ReadPolicy()
        self._on_control = on_control
        self._seen = Seen()
        self._scope: asyncio.Timeout | None = None
        self._is_reconnect_asked = False
        self._hurried = asyncio.Event()
        self.cursor = last_event_id
        """The last event received, also one that is hidden; the next connection begins after it."""
        self.is_settled = False
        """The newest answer said that the session's turn is over (`X-Session-Settled`)."""

    async def batches(self) -> AsyncGenerator[list[Part], None]:
        """
        Yield the parts of one event after another, never an empty list, until a clean end.

        Raises:
            ControlPlaneError: It refuses for good, or `max_retries` are used up.
        """
        failures = 0
        while True:
            try:
                async with AsyncExitStack() as stack:
                    body = await self._open(stack)
                    failures = 0
                    while (event := await self._next_event(body.events)) is not None:
                        if parts := self._take(event, body.version):
                            yield parts
                return
            except ControlPlaneError as error:
                failures += 1
                await self._back_off(error, failures)

    def retry_now(self) -> None:
        """End a back-off now, for example since the network is back; otherwise nothing."""
        self._hurried.set()

    def force_reconnect(self) -> None:
        """Give up the connection, or the attempt at one, and make another after the back-off."""
        self._is_reconnect_asked = True
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def _open(self, stack: AsyncExitStack) -> SseBody:
        self._is_reconnect_asked = False
        body = await self._interruptible(
            lambda: stack.enter_async_context(self._opener(self.cursor)),
            self._policy.header_timeout,
            "no headers in time",
        )
        self.is_settled = body.settled

        return body

    async def _next_event(self, events: AsyncIterator[ServerSentEvent]) -> ServerSentEvent | None:
        return await self._interruptible(
            lambda: _anext_or_none(events), self._policy.stall_timeout, "the stream stalled"
        )

    async def _interruptible(
        self, step: Callable[[], Awaitable[T]], seconds: float | None, complaint: str
    ) -> T:
        """
        Return what `step` gives.

        Raises:
            ControlPlaneUnreachableError: Its time is over, or `force_reconnect` was called.
        """
        if self._is_reconnect_asked:  # while nobody was reading
            raise _dropped("a new connection was asked for")
        # One scope a step, never one around a `yield`: the next step may be another task's.
        try:
            async with asyncio.timeout(seconds) as self._scope:
                return await step()
        except TimeoutError as error:
            reason = "a new connection was asked for" if self._is_reconnect_asked else complaint
            raise _dropped(reason) from error
        finally:
            self._scope = None

    def _take(self, event: ServerSentEvent, version: str) -> list[Part]:
        """Note an event; return its parts less those that go to `on_control`."""
        parts, self.cursor = parse_event(
            event, version=version, cursor=self.cursor, seen=self._seen
        )
        if self._on_control is None:
            return parts
        for part in parts:
            if part.control is not None:
                self._on_control(part)

        return [part for part in parts if part.control is None]

    async def _back_off(self, error: ControlPlaneError, failures: int) -> None:
        """Sleep before the next attempt; raise `error` when there is to be none."""
        policy = self._policy
        if policy.max_retries is not None and failures > policy.max_retries:
            raise error
        if error.status in policy.not_retried or error.status in _NEVER_RETRIED:
            raise error
        if error.status is None and not error.retryable:
            raise error
        delay = backoff(
            failures, base=policy.retry_base, cap=policy.retry_cap, jitter=policy.retry_jitter
        )
        log.info("stream.read_retried", retry=failures, delay_s=round(delay, 3), reason=str(error))
        self._hurried.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._hurried.wait()


def _dropped(reason: str) -> ControlPlaneUnreachableError:
    return ControlPlaneUnreachableError(f"the connection was given up: {reason}", retryable=True)


async def _anext_or_none(events: AsyncIterator[ServerSentEvent]) -> ServerSentEvent | None:
    return await anext(events, None)


__all__ = ["Opener", "ReadPolicy", "Subscription"]
