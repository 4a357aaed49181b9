"""
Hands the parts of a subscription, which lives on the runtime loop, to tasks of any thread.

A feed is pulled: one hop between the loops brings a whole batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from td_worker.control_plane import SseBody
from td_worker.errors import ControlPlaneError, StreamReadError
from td_worker.streams.parts import Part
from td_worker.streams.subscription import ReadPolicy, Subscription

if TYPE_CHECKING:
    from td_worker.streams.client import StreamClient


class RunStreams(Protocol):
    """Where run streams are read: the control plane."""

    def open_run_stream(
        self, run_id: str, key: str, *, last_event_id: str | None, timeout_s: int
    ) -> AbstractAsyncContextManager[SseBody]:
        """Subscribe once, after `last_event_id`."""
        ...


class Feed:
    """
    The parts of one subscription, for any thread; made by `StreamClient.follow`.

    Pulled in a thread with `feed.next().result()`, on a loop with `asyncio.wrap_future`.

    Args:
        client: Whose runtime loop the subscription belongs to.
        subscription: Not started yet. Give it no `on_control` that runs code of a task: it would
            run on the runtime loop. Route `part.control` where the feed is pulled.
        translate: Makes the error that the puller sees from the control plane's.
    """

    def __init__(
        self,
        client: StreamClient,
        subscription: Subscription,
        translate: Callable[[ControlPlaneError], Exception],
    ) -> None:
        self._client = client
        self._translate = translate
        self._batches = subscription.batches()
        self._ended = False
        self.subscription = subscription
        """For its `cursor` and `is_settled`; its methods belong to the runtime loop."""

    def next(self) -> Future[list[Part] | None]:
        """Return the next parts, to come; None at the end. One call at a time."""
        return self._client.submit(self._next())

    def close(self) -> None:
        """Close the connection, soon. Does nothing at the end."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(Exception):
                self._client.submit(self._batches.aclose())

    def retry_now(self) -> None:
        """End a back-off now."""
        self._client.call(self.subscription.retry_now)

    def force_reconnect(self) -> None:
        """Give up the connection and make another."""
        self._client.call(self.subscription.force_reconnect)

    async def _next(self) -> list[Part] | None:
        try:
            parts = await anext(self._batches, None)
        except ControlPlaneError as error:
            self._ended = True
            raise self._translate(error) from error
        self._ended = parts is None

        return parts


def run_read_error(run_id: str, key: str) -> Callable[[ControlPlaneError], Exception]:
    """Return what names a run's stream in the error of a read."""
    return lambda error: StreamReadError(run_id, key, status=error.status, reason=str(error))


def chunks_of(parts: list[Part]) -> list[Any]:
    """Return the chunks among `parts`: without control records and what holds no envelope."""
    return [part.chunk for part in parts if part.has_chunk]


__all__ = ["Feed", "ReadPolicy", "RunStreams", "Subscription", "chunks_of", "run_read_error"]
