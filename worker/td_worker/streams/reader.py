"""
Reads a run's stream: reconnects, resumes and hides what was sent twice.

The subscription lives on the runtime loop and is pulled: nothing is read from the connection before
somebody asks for the next batch, so a slow reader holds back the server and no memory fills up. One
hop between the loops brings a whole batch of chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from td_worker.control_plane import SseBody
from td_worker.errors import ControlPlaneError, StreamReadError
from td_worker.streams.parts import Part, Seen, parse_event
from td_worker.streams.policy import backoff

if TYPE_CHECKING:
    from td_worker.streams.client import StreamClient

log = structlog.get_logger()

Connect = Callable[[str | None], AbstractAsyncContextManager[SseBody]]


class RunStreams(Protocol):
    """Where run streams are read: the control plane."""

    def open_run_stream(
        self, run_id: str, key: str, *, last_event_id: str | None, timeout_s: int
    ) -> AbstractAsyncContextManager[SseBody]:
        """Subscribe once, after `last_event_id`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPolicy:
    """When a read is tried again. Times are seconds."""

    retry_base: float = 0.1
    retry_cap: float = 5.0
    retry_jitter: float = 0.5
    header_timeout: float = 30.0
    """How long the answer's headers may take."""
    not_retried: frozenset[int] = frozenset({400, 401, 403, 404, 409, 410, 422})


class Subscription:
    """
    A stream's parts over as many connections as it takes, each once, in order.

    Ends when the server ends a body cleanly, which it does after the asked-for time of silence.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        last_event_id: str | None = None,
        policy: ReadPolicy | None = None,
    ) -> None:
        self._connect = connect
        self._policy = policy or ReadPolicy()
        self._seen = Seen()
        self.cursor = last_event_id
        """What the next connection resumes after."""

    async def batches(self) -> AsyncGenerator[list[Part], None]:
        """
        Yield the parts of one event after another.

        Raises:
            ControlPlaneError: It refuses for good.
        """
        failures = 0
        while True:
            try:
                async with AsyncExitStack() as stack:
                    body = await self._open(stack)
                    failures = 0
                    async for event in body.events:
                        parts, self.cursor = parse_event(
                            event, version=body.version, cursor=self.cursor, seen=self._seen
                        )
                        if parts:
                            yield parts
                return
            except (ControlPlaneError, TimeoutError) as error:
                failures += 1
                await self._back_off(error, failures)

    async def _open(self, stack: AsyncExitStack) -> SseBody:
        async with asyncio.timeout(self._policy.header_timeout):
            return await stack.enter_async_context(self._connect(self.cursor))

    async def _back_off(self, error: Exception, failures: int) -> None:
        policy = self._policy
        status = getattr(error, "status", None)
        if status in policy.not_retried or (status is None and _is_final(error)):
            raise error
        delay = backoff(
            failures, base=policy.retry_base, cap=policy.retry_cap, jitter=policy.retry_jitter
        )
        log.info("stream.read_retried", retry=failures, delay_s=round(delay, 3), reason=str(error))
        await asyncio.sleep(delay)


class Chunks:
    """What `streams.read` hands out, pulled batch by batch from any thread."""

    def __init__(
        self,
        client: StreamClient,
        source: RunStreams,
        run_id: str,
        key: str,
        *,
        last_event_id: str | None,
        timeout_s: int,
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._key = key
        subscription = Subscription(
            lambda cursor: source.open_run_stream(
                run_id, key, last_event_id=cursor, timeout_s=timeout_s
            ),
            last_event_id=last_event_id,
        )
        self._batches = subscription.batches()
        self._ended = False

    def next(self) -> Future[list[Any] | None]:
        """Return the next chunks, to come; None at the end. One call at a time."""
        return self._client.submit(self._next())

    def close(self) -> None:
        """Close the connection, soon. Does nothing at the end."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(Exception):
                self._client.submit(self._close())

    async def _close(self) -> None:
        await self._batches.aclose()

    async def _next(self) -> list[Any] | None:
        try:
            async for parts in self._batches:
                chunks = [part.chunk for part in parts if part.has_chunk]
                if chunks:
                    return chunks
        except ControlPlaneError as error:
            self._ended = True
            raise StreamReadError(
                self._run_id, self._key, status=error.status, reason=str(error)
            ) from error
        self._ended = True

        return None


def _is_final(error: Exception) -> bool:
    return isinstance(error, ControlPlaneError) and not error.retryable


__all__ = ["Chunks", "ReadPolicy", "RunStreams", "Subscription"]
