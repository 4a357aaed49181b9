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
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from httpx_sse import EventSource, ServerSentEvent, SSEError

from td_sharedcache.credential import Grant, Secret
from td_sharedcache.slot import Slot
from td_worker.access_token import load_signer, public_access_token
from td_worker.errors import (
    ControlPlaneBusyError,
    ControlPlaneError,
    ControlPlaneRefusedError,
    ControlPlaneUnreachableError,
    SessionClosedError,
    StreamVersionError,
)
from td_worker.http import is_loopback, retry_after, say
from td_worker.version import VERSION

API_VERSION: Final = "2025-07-16"

MINT_DEADLINE: Final = 9.5
"""Seconds for a mint with all its retries: just inside the cache's own deadline of 10 s, so that
the caller is told what went wrong and not only that time ran out."""

CALL_DEADLINE: Final = 120.0
"""Seconds for any other call with all its retries, however long a server asks to be left alone."""

FRIENDLY_PREFIX: Final = "session_"
"""What ids of sessions begin with that the control plane has given; external ids never do."""

MAIN_CHANNEL: Final = "main"
"""What a session's own channel is called in slots; on the wire it has no name."""

_KNOWN_SESSIONS: Final = 10_000
"""Canonical ids remembered; a session asked about again costs one more GET."""

_CLOSED_STATUSES: Final = {400, 409}
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
    settled: bool = False
    """The server saw that the last turn is complete: nothing follows (`X-Session-Settled`)."""


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
        self._key = check_key(secret_key)
        self._headers = _common_headers(self._key)
        self._claims: dict[str, Any] | None = None
        self._mint_deadline = mint_deadline
        self._canonical_ids: dict[str, str] = {}
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
        response = await self._call("PUT", mint_path(slot), deadline=self._mint_deadline)

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
        path = f"/realtime/v1/streams/{segment(run_id)}/{segment(key)}"
        async with self._subscribe(path, last_event_id, timeout_s) as body:
            yield body

    @asynccontextmanager
    async def open_input_stream(
        self, run_id: str, stream_id: str, *, last_event_id: str | None, timeout_s: int
    ) -> AsyncIterator[SseBody]:
        """Subscribe to what clients send to a run's input stream; as `open_run_stream`."""
        path = f"/realtime/v1/streams/{segment(run_id)}/input/{segment(stream_id)}"
        async with self._subscribe(path, last_event_id, timeout_s) as body:
            yield body

    @asynccontextmanager
    async def open_session_channel(
        self,
        slot: Slot,
        *,
        last_event_id: str | None,
        timeout_s: int,
        peek_settled: bool = False,
    ) -> AsyncIterator[SseBody]:
        """
        Subscribe to one direction of a session's channel; as `open_run_stream`.

        Args:
            slot: Which session, channel and direction.
            last_event_id: The last sequence number already seen.
            timeout_s: The body ends after so many seconds without a record; 1 to 600.
            peek_settled: End at once when the last turn is complete and all was read.
        """
        extra = {"x-peek-settled": "1"} if peek_settled else {}
        async with self._subscribe(channel_path(slot), last_event_id, timeout_s, extra) as body:
            yield body

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        retries_conflict: bool = True,
    ) -> bytes:
        """
        Make one call with the official client's retries and return what is answered.

        Args:
            method: The HTTP method.
            path: With the query, percent-encoded.
            body: Sent as it is.
            headers: Sent besides the common ones, the same with every try.
            retries_conflict: Whether a 409 may pass by itself.

        Raises:
            ControlPlaneError: It refuses, or does not answer.
        """
        response = await self._call(
            method, path, body=body, headers=headers, retries_conflict=retries_conflict
        )

        return response.content

    async def public_access_token(self, scopes: Iterable[str], ttl: float) -> str:
        """
        Return a token for a client, good for `scopes` alone and for `ttl` seconds.

        Asks once what such tokens have to say, and signs them here.

        Raises:
            ControlPlaneError: It does not say.
        """
        if self._claims is None:
            asking = self.call("POST", "/api/v1/auth/jwt/claims")
            # The library that signs takes long to import: meanwhile the loop goes on.
            answer, _ = await asyncio.gather(asking, asyncio.to_thread(load_signer))
            self._claims = _claims(answer)

        return public_access_token(self._key, scopes, ttl, claims=self._claims)

    async def canonical_id(self, session_id: str) -> str:
        """
        Return the one id of a session that its slots are named by: the external id if it has one.

        Asks only for the ids that the control plane gives (`session_...`), and for each once.

        Raises:
            ControlPlaneError: It does not know the session, or does not answer.
        """
        known = self.known_id(session_id)
        if known is None:
            answer = await self.call("GET", f"/api/v1/sessions/{segment(session_id)}")
            known = self._canonical_ids[session_id] = _external_id(answer) or session_id
            if len(self._canonical_ids) > _KNOWN_SESSIONS:
                del self._canonical_ids[next(iter(self._canonical_ids))]

        return known

    def known_id(self, session_id: str) -> str | None:
        """Return the canonical id as far as it is known here, without asking; for any thread."""
        if not session_id.startswith(FRIENDLY_PREFIX):
            return session_id

        return self._canonical_ids.get(session_id)

    # --- the one way on the wire ---------------------------------------------------------------

    @asynccontextmanager
    async def _subscribe(
        self,
        path: str,
        last_event_id: str | None,
        timeout_s: int,
        extra: Mapping[str, str] | None = None,
    ) -> AsyncIterator[SseBody]:
        headers = {"accept": "text/event-stream", "timeout-seconds": str(timeout_s)}
        headers.update(extra or {})
        if last_event_id:
            headers["last-event-id"] = last_event_id
        with self._translated("GET", path):
            request = self._request("GET", path, headers, timeout=timeout_s + _READ_GRACE)
            response = await self._http().send(request, stream=True)
            try:
                if not response.is_success:
                    await response.aread()
                    raise self._refusal("GET", response)
                # Closed here: a reader that leaves early would leave it to the collector.
                async with aclosing(self._events(path, response)) as events:
                    yield SseBody(
                        version=response.headers.get("x-stream-version", "v1"),
                        events=events,
                        settled=response.headers.get("x-session-settled") == "true",
                    )
            finally:
                await response.aclose()

    async def _events(
        self, path: str, response: httpx.Response
    ) -> AsyncGenerator[ServerSentEvent, None]:
        with self._translated("GET", path):
            async for event in EventSource(response).aiter_sse():
                yield event

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        deadline: float = CALL_DEADLINE,
        retries_conflict: bool = True,
    ) -> httpx.Response:
        """Send with the official client's retries, cut at `deadline` seconds."""
        ends = time.monotonic() + deadline
        headers = {"x-trigger-request-idempotency-key": str(uuid.uuid4()), **(headers or {})}
        for attempt in count(1):
            reset: str | None = None
            try:
                response = await self._send(
                    method, path, headers, body=body, timeout=max(0.1, ends - time.monotonic())
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
            if delay is None or time.monotonic() + delay >= ends:
                raise error
            if not error.retryable or (error.status == 409 and not retries_conflict):
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
        body: bytes = b"",
    ) -> httpx.Response:
        with self._translated(method, path):
            async with asyncio.timeout(timeout):
                return await self._http().send(
                    self._request(method, path, headers, body=body, timeout=timeout)
                )

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        timeout: float,
        body: bytes = b"",
    ) -> httpx.Request:
        return self._http().build_request(
            method,
            self.url + path,
            # Whole, so that it is sent with its length: the append routes refuse chunked bodies.
            content=body,
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
        if _is_closed_session(status, text, response.url.path):
            return SessionClosedError(
                f"{message}. {advice(status, text, response.url.path)}", status=status
            )
        if should_retry(status, response.headers.get("x-should-retry")):
            return ControlPlaneBusyError(message, status=status, retryable=True, retry_after=after)

        return ControlPlaneRefusedError(
            f"{message}. {advice(status, text, response.url.path)}",
            status=status,
            retry_after=after,
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


def advice(status: int, text: str, path: str = "") -> str:
    """Return what to do about a refusal."""
    if status == 401:
        return "Check the secret key: [control_plane] secret_key, or TRIGGER_SECRET_KEY"
    if "/v1/sessions" in path:
        return _session_advice(status, text)
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


def _is_closed_session(status: int, text: str, path: str) -> bool:
    is_over = "closed" in text or "expired" in text

    return "/v1/sessions" in path and status in _CLOSED_STATUSES and is_over


def _session_advice(status: int, text: str) -> str:
    if status == 403:
        return "This secret key may not do that with sessions; the environment's root key may"
    if status == 404:
        return (
            "It does not know this session: check the id; one that begins with `session_` must "
            "have been started, any other one is an external id"
        )
    if status == 413:
        return "Store what is so large elsewhere and send where it is"
    if _is_closed_session(status, text, "/v1/sessions"):
        return "That session is over, for good: start another one"

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
        "trigger-version": VERSION,
        "x-trigger-source": "sdk",
        "x-trigger-worker": "true",
        "x-trigger-api-version": API_VERSION,
        "x-trigger-realtime-streams-version": "v2",
    }


def mint_path(slot: Slot) -> str:
    """Return where the PUT for `slot` goes."""
    if slot.kind != "run":
        return channel_path(slot)
    # The target is always `self`: which run is meant has been decided by then.
    run_id, key = slot.parts

    return f"/realtime/v1/streams/{segment(run_id)}/self/{segment(key)}"


def channel_path(slot: Slot) -> str:
    """Return the path of one direction of a session's channel; the main one has no name there."""
    session_id, channel, io = slot.parts
    name = "" if channel == MAIN_CHANNEL else f"/channels/{segment(channel)}"

    return f"/realtime/v1/sessions/{segment(session_id)}{name}/{io}"


def segment(text: str) -> str:
    """Return `text` as one segment of a path."""
    return quote(text, safe="")


def _endpoint(given: str | None, basin: str) -> str:
    endpoint = (given or f"https://{basin}.b.s2.dev/v1").rstrip("/")
    if not urlsplit(endpoint).path:
        endpoint += "/v1"

    return endpoint


def _integer(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


class _SessionIds(msgspec.Struct):
    externalId: str | None = None  # noqa: N815  the wire's name


class _Answer(msgspec.Struct):
    version: str = "v1"
    error: Any = None


def _external_id(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_SessionIds).externalId
    except msgspec.DecodeError as error:
        raise ControlPlaneRefusedError(
            f"the control plane described a session by what is none: {error}"
        ) from error


def _claims(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ControlPlaneRefusedError(
            f"the control plane described a public access token by what is none: {error}"
        ) from error


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
