"""
The only module that speaks to the control plane: Trigger.dev's, or the gateway's stand-in.

A proxy from the environment is used for real hosts and never for loopback, where it would be handed
the secret key. Redirects are not followed, for the same reason.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import count
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from httpx_sse import EventSource, ServerSentEvent, SSEError

from td_sharedcache.credential import Grant, Secret
from td_sharedcache.slot import Slot
from td_worker.errors import (
    ControlPlaneBusyError,
    ControlPlaneError,
    ControlPlaneRefusedError,
    ControlPlaneUnreachableError,
    StreamVersionError,
)
from td_worker.http import is_loopback, retry_after, say

API_VERSION: Final = "2025-07-16"

MINT_DEADLINE: Final = 9.5
"""Seconds for a mint with all its retries: just inside the cache's own deadline of 10 s, so that
the caller is told what went wrong and not only that time ran out."""

_ATTEMPTS: Final = 5
_DEFAULT_FLUSH_MS: Final = 200
_DEFAULT_RETRIES: Final = 10
_READ_GRACE: Final = 30.0
"""A read may be silent this much longer than asked for before its connection counts as dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SseBody:
    """An answered subscription: `version` of the stream, and its events until the body ends."""

    version: str
    events: AsyncIterator[ServerSentEvent]


class ControlPlane:
    """
    A client for one control plane and one secret key. Lives on one loop; a context manager.

    It is an `AsyncMinter` for the credential cache.

    Args:
        url: Its origin, and a path prefix if it has one.
        secret_key: Sent as a bearer token; kept out of every error, log and repr.
        mint_deadline: Seconds for one mint with all its retries.
        client: An HTTP client to use, which then stays the caller's to close.
    """

    def __init__(
        self,
        url: str,
        secret_key: str,
        *,
        mint_deadline: float = MINT_DEADLINE,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = _common_headers(check_key(secret_key))
        self._mint_deadline = mint_deadline
        self._client = client
        self._owns_client = client is None

    def __repr__(self) -> str:
        return f"ControlPlane({self.url!r})"

    async def __aenter__(self) -> ControlPlane:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._owns_client and self._client is not None:
            await self._client.aclose()
            self._client = None

    async def mint(self, slot: Slot) -> Grant:
        """
        Have a credential for `slot` made: the one PUT.

        Raises:
            ControlPlaneError: There is none; says whether trying again is of use.
        """
        response = await self._call("PUT", _mint_path(slot), deadline=self._mint_deadline)

        return read_grant(response.headers, response.content, slot)

    async def ping(self) -> None:
        """
        Ask something cheap that needs the key.

        Raises:
            ControlPlaneError: It does not answer, or refuses the key.
        """
        response = await self._send("GET", "/platform/v1/ping", {}, timeout=self._mint_deadline)
        if response.status_code == 404:  # Trigger.dev, which is not our gateway
            path = "/api/v1/sessions?page%5Bsize%5D=1"
            response = await self._send("GET", path, {}, timeout=self._mint_deadline)
        if not response.is_success:
            raise self._refusal("GET", response)

    @asynccontextmanager
    async def open_run_stream(
        self, run_id: str, key: str, *, last_event_id: str | None, timeout_s: int
    ) -> AsyncIterator[SseBody]:
        """
        Subscribe to a run's stream after `last_event_id`; one connection, no retries.

        Args:
            run_id: Whose stream.
            key: Which stream.
            last_event_id: The last sequence number already seen.
            timeout_s: The body ends after so many seconds without a record; 1 to 600.

        Raises:
            ControlPlaneError: On entering, and while the events are read.
        """
        path = f"/realtime/v1/streams/{_segment(run_id)}/{_segment(key)}"
        headers = {"accept": "text/event-stream", "timeout-seconds": str(timeout_s)}
        if last_event_id:
            headers["last-event-id"] = last_event_id
        with self._translated("GET", path):
            request = self._request("GET", path, headers, timeout=timeout_s + _READ_GRACE)
            response = await self._http().send(request, stream=True)
            try:
                if not response.is_success:
                    await response.aread()
                    raise self._refusal("GET", response)
                stream_version = response.headers.get("x-stream-version", "v1")
                # Closed here: a reader that leaves early would leave it to the collector.
                async with aclosing(self._events(path, response)) as events:
                    yield SseBody(version=stream_version, events=events)
            finally:
                await response.aclose()

    async def _events(
        self, path: str, response: httpx.Response
    ) -> AsyncGenerator[ServerSentEvent, None]:
        with self._translated("GET", path):
            async for event in EventSource(response).aiter_sse():
                yield event

    async def _call(self, method: str, path: str, *, deadline: float) -> httpx.Response:
        """Send with the official client's retries, cut at `deadline` seconds."""
        ends = time.monotonic() + deadline
        headers = {"x-trigger-request-idempotency-key": str(uuid.uuid4())}
        for attempt in count(1):
            reset: str | None = None
            try:
                response = await self._send(
                    method, path, headers, timeout=max(0.1, ends - time.monotonic())
                )
                if response.is_success:
                    return response
                error: ControlPlaneError = self._refusal(method, response)
                reset = response.headers.get("x-ratelimit-reset")
            except ControlPlaneUnreachableError as unreachable:
                error = unreachable
            delay = call_delay(
                attempt, reset_ms=reset, now=time.time(), retry_after=error.retry_after
            )
            if not error.retryable or delay is None or time.monotonic() + delay >= ends:
                raise error
            await asyncio.sleep(delay)
        raise AssertionError("the count of attempts has no end")

    async def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        timeout: float,
    ) -> httpx.Response:
        with self._translated(method, path):
            async with asyncio.timeout(timeout):
                return await self._http().send(
                    self._request(method, path, headers, timeout=timeout)
                )

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], *, timeout: float
    ) -> httpx.Request:
        return self._http().build_request(
            method,
            self.url + path,
            headers={**self._headers, **headers},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
        )

    def _http(self) -> httpx.AsyncClient:
        # Made on first use, on the loop that uses it. Without a bound on connections: a hundred
        # open reads must not keep a mint waiting.
        if self._client is None:
            self._client = httpx.AsyncClient(
                trust_env=not is_loopback(urlsplit(self.url).hostname or ""),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            )

        return self._client

    def _refusal(self, method: str, response: httpx.Response) -> ControlPlaneError:
        """Return the error that an answer other than 2xx is."""
        status = response.status_code
        text = _error_text(response.content)
        message = f"{self._where(method, response.url.raw_path.decode())} answered {status}"
        message += f": {text}" if text else ""
        after = retry_after(response.headers)
        if status == 429:
            # A mint that cannot wait for so long leaves word for those who come later.
            left = until_reset(response.headers.get("x-ratelimit-reset"), time.time())
            after = max(after or 0.0, left or 0.0) or None
        if should_retry(status, response.headers.get("x-should-retry")):
            return ControlPlaneBusyError(message, status=status, retryable=True, retry_after=after)

        return ControlPlaneRefusedError(
            f"{message}. {advice(status, text)}", status=status, retry_after=after
        )

    @contextmanager
    def _translated(self, method: str, path: str) -> Iterator[None]:
        """The one place where httpx's errors become ours."""
        try:
            yield
        except SSEError as error:
            raise ControlPlaneRefusedError(
                f"{self._where(method, path)} did not answer with server-sent events: {error}"
            ) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ControlPlaneRefusedError(
                f"{self.url!r} is no address of a control plane: {error}"
            ) from error
        except (httpx.HTTPError, httpx.StreamError, TimeoutError, OSError) as error:
            raise ControlPlaneUnreachableError(
                f"{self._where(method, path)} got no answer: {say(error)}", retryable=True
            ) from error

    def _where(self, method: str, path: str) -> str:
        return f"the control plane at {self.url} ({method} {path})"


# --- policy ------------------------------------------------------------------------------------


def should_retry(status: int, x_should_retry: str | None) -> bool:
    """Say whether an answer is worth another try: the server's word first, then the status."""
    if x_should_retry in {"true", "false"}:
        return x_should_retry == "true"

    return status in {408, 409, 429} or status >= 500


def call_delay(
    attempt: int, *, reset_ms: str | None, now: float, retry_after: float | None = None
) -> float | None:
    """
    Return the seconds to wait after failed attempt `attempt` (from 1), None after the last.

    Args:
        attempt: How many were made.
        reset_ms: The header `x-ratelimit-reset`, epoch milliseconds.
        now: Wall-clock seconds.
        retry_after: Seconds that the server asked to be left alone. The official client does not
            read this; one that keeps sending is what a server in trouble needs least.
    """
    if attempt >= _ATTEMPTS:
        return None
    least = retry_after or 0.0
    left = until_reset(reset_ms, now)
    if left is not None:
        spread = random.random()  # noqa: S311  keeps clients apart, guards nothing
        return max(least, left) + spread

    return max(least, min(30.0, 1.6 ** (attempt - 1)))


def until_reset(reset_ms: str | None, now: float) -> float | None:
    """Return the seconds until `x-ratelimit-reset`, epoch milliseconds; None without."""
    if not reset_ms or not reset_ms.isdecimal():
        return None

    return int(reset_ms) / 1000 - now


def read_grant(headers: Mapping[str, str], body: bytes, slot: Slot) -> Grant:
    """
    Return what a successful PUT granted.

    Raises:
        StreamVersionError: The run's streams are not in S2.
    """
    stream_version = _body_version(body)
    token = headers.get("x-s2-access-token")
    basin = headers.get("x-s2-basin")
    if stream_version == "v1" or not token or not basin:
        raise StreamVersionError(
            f"the control plane keeps the streams of {slot} in version v1, which td-runtime does "
            "not write: trigger the run with v2 realtime streams, and on a self-hosted server "
            "configure S2 (REALTIME_STREAMS_DEFAULT_VERSION=v2)"
        )

    return Grant(
        access_token=token,
        basin=basin,
        stream=headers.get("x-s2-stream-name") or slot.parts[-1],
        endpoint=_endpoint(headers.get("x-s2-endpoint"), basin),
        flush_interval=_integer(headers.get("x-s2-flush-interval-ms"), _DEFAULT_FLUSH_MS) / 1000,
        max_retries=_integer(headers.get("x-s2-max-retries"), _DEFAULT_RETRIES),
        version=stream_version,
    )


def advice(status: int, text: str) -> str:
    """Return what to do about a refusal."""
    if status == 401:
        return "Check the secret key: [control_plane] secret_key, or TRIGGER_SECRET_KEY"
    if status == 403:
        return "This secret key may not do that; run streams need the environment's root key"
    if status == 404:
        return (
            "It does not know this run: check the id given as `target`; a run that writes to "
            "Trigger.dev needs the id of a run there (`td-runtime trigger --stream-run run_...`)"
        )
    if status == 400 and "completed" in text:
        return "That run is over, and its streams are closed: write while it executes"

    return "Trying again is no use"


def check_key(secret_key: str) -> Secret:
    """
    Return `secret_key` when a header can carry it.

    Raises:
        ValueError: It cannot; the message does not show it.
    """
    if not secret_key or not secret_key.isascii() or not secret_key.isprintable():
        raise ValueError(
            "the control plane's secret key must be printable ASCII without line breaks, "
            f"got {len(secret_key)} characters that are not"
        )

    return Secret(secret_key)


def _common_headers(secret_key: str) -> dict[str, str]:
    return {
        "content-type": "application/json",
        # Masked wherever headers are only looked at, such as a traceback with its locals.
        "authorization": Secret(f"Bearer {secret_key}"),
        "trigger-version": _own_version(),
        "x-trigger-source": "sdk",
        "x-trigger-worker": "true",
        "x-trigger-api-version": API_VERSION,
        "x-trigger-realtime-streams-version": "v2",
    }


@cache
def _own_version() -> str:
    return version("td-runtime")


def _mint_path(slot: Slot) -> str:
    # The target is always `self`: which run is meant has been decided by then.
    parts = [_segment(part) for part in slot.parts]
    if slot.kind == "run":
        return f"/realtime/v1/streams/{parts[0]}/self/{parts[1]}"

    return f"/realtime/v1/sessions/{parts[0]}/{parts[-1]}"


def _segment(text: str) -> str:
    return quote(text, safe="")


def _endpoint(given: str | None, basin: str) -> str:
    endpoint = (given or f"https://{basin}.b.s2.dev/v1").rstrip("/")
    if not urlsplit(endpoint).path:
        endpoint += "/v1"

    return endpoint


def _integer(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


class _Answer(msgspec.Struct):
    version: str = "v1"
    error: Any = None


def _body_version(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Answer).version
    except msgspec.DecodeError:
        return "v1"


def _error_text(body: bytes) -> str:
    """Return what an error's body says: some routes answer JSON, the run-stream ones plain text."""
    try:
        error = msgspec.json.decode(body, type=_Answer).error
    except msgspec.DecodeError:
        error = None
    text = error if isinstance(error, str) else body.decode(errors="replace")

    return text.strip()[:500]
