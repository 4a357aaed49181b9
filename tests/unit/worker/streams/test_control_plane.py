"""The control-plane client over httpx's mock transport."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from td_sharedcache.slot import Slot
from td_worker.control_plane import ControlPlane, call_delay, read_grant, should_retry
from td_worker.errors import (
    ControlPlaneBusyError,
    ControlPlaneError,
    ControlPlaneRefusedError,
    ControlPlaneUnreachableError,
    StreamVersionError,
)

KEY = "tr_dev_very_secret"
SLOT = Slot.run("run_1", "a b")
GRANT = {
    "X-S2-Access-Token": "s2-token-secret",
    "X-S2-Basin": "basin",
    "X-S2-Stream-Name": "/runs/run_1/a b",
    "X-S2-Flush-Interval-Ms": "100",
    "X-S2-Max-Retries": "10",
    "X-S2-Endpoint": "http://s2/v1/",
}


def plane(handler: Any, **options: Any) -> ControlPlane:
    client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return ControlPlane("http://plane/", KEY, client=client, **options)


def granted() -> httpx.Response:
    return httpx.Response(202, json={"version": "v2"}, headers=GRANT)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the delays between attempts instead of waiting them out."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("td_worker.control_plane.asyncio.sleep", sleep)
    return slept


async def test_a_mint_is_the_official_put():
    """Path, method, body and headers are those the official SDK sends from inside a task."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return granted()

    grant = await plane(answer).mint(SLOT)

    request = requests[0]
    assert (request.method, request.url.raw_path) == (
        "PUT",
        b"/realtime/v1/streams/run_1/self/a%20b",
    )
    assert request.content == b""
    headers = request.headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert headers["x-trigger-source"] == "sdk"
    assert headers["x-trigger-worker"] == "true"
    assert headers["x-trigger-api-version"] == "2025-07-16"
    assert headers["x-trigger-realtime-streams-version"] == "v2"
    assert headers["trigger-version"]
    assert len(headers["x-trigger-request-idempotency-key"]) == 36
    assert grant.access_token == "s2-token-secret"
    assert (grant.endpoint, grant.stream, grant.basin) == (
        "http://s2/v1",
        "/runs/run_1/a b",
        "basin",
    )
    assert (grant.flush_interval, grant.max_retries, grant.version) == (0.1, 10, "v2")


async def test_a_session_slot_is_minted_at_its_channel():
    """A session's slot names the sessions route, its parts encoded, a side channel by its name."""
    paths: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return granted()

    await plane(answer).mint(Slot.session("a b", "main", "out"))
    await plane(answer).mint(Slot.session("a b", "logs", "in"))

    assert paths == [
        b"/realtime/v1/sessions/a%20b/out",
        b"/realtime/v1/sessions/a%20b/channels/logs/in",
    ]


async def test_retries_follow_the_official_schedule(no_waiting):
    """Five attempts after 1, 1.6, 2.56 and 4.096 s carry one and the same idempotency key."""
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["x-trigger-request-idempotency-key"])
        return httpx.Response(503, text="busy") if len(keys) < 5 else granted()

    await plane(answer).mint(SLOT)

    assert no_waiting == pytest.approx([1.0, 1.6, 2.56, 4.096])
    assert len(keys) == 5
    assert len(set(keys)) == 1


async def test_retries_stop_at_the_deadline(no_waiting):
    """A delay that would end after the mint's deadline is not begun: the last answer is raised."""
    with pytest.raises(ControlPlaneBusyError, match="503") as caught:
        await plane(lambda _: httpx.Response(503), mint_deadline=1.5).mint(SLOT)

    assert caught.value.retryable
    assert no_waiting == [
        1.0,
    ]


async def test_a_hanging_control_plane_is_given_up_at_the_deadline():
    """No mint outlives its deadline, whatever the control plane does."""

    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(ControlPlaneUnreachableError, match="TimeoutError"):
        await plane(hang, mint_deadline=0.1).mint(SLOT)


@pytest.mark.parametrize(
    ("status", "header", "expected"),
    [
        (408, None, True),
        (409, None, True),
        (429, None, True),
        (500, None, True),
        (400, None, False),
        (404, None, False),
        (404, "true", True),
        (503, "false", False),
    ],
)
def test_the_servers_word_goes_before_the_status(status, header, expected):
    """x-should-retry decides; without it 408, 409, 429 and 5xx are tried again."""
    assert should_retry(status, header) is expected


def test_a_rate_limit_is_waited_out():
    """x-ratelimit-reset, epoch milliseconds, replaces the schedule, plus up to a second."""
    assert 2.0 <= (call_delay(1, reset_ms="102000", now=100.0) or 0) <= 3.0
    assert call_delay(5, reset_ms="102000", now=100.0) is None


async def test_a_rate_limit_that_no_mint_can_wait_out_is_passed_on():
    """A 429 whose reset lies beyond the mint's deadline fails at once and says when it ends."""
    calls: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        reset = str(int((time.time() + 60) * 1000))
        return httpx.Response(429, headers={"x-ratelimit-reset": reset, "retry-after": "1"})

    with pytest.raises(ControlPlaneBusyError) as caught:
        await plane(answer, mint_deadline=10.0).mint(SLOT)

    assert 55.0 < (caught.value.retry_after or 0) <= 60.0
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("status", "text", "says"),
    [
        (401, '{"error":"Invalid API key"}', "Invalid API key. Check the secret key"),
        (403, '{"error":"Unauthorized"}', "root key"),
        (404, "Run not found", "does not know this run"),
        (
            400,
            "Cannot initialize a realtime stream on a completed run",
            "That run is over",
        ),
    ],
)
async def test_a_refusal_says_what_to_do(status, text, says):
    """A final answer fails at once, not retryable, with status, the server's text and advice."""
    calls: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(status, text=text)

    with pytest.raises(ControlPlaneRefusedError) as caught:
        await plane(answer).mint(SLOT)

    assert says in str(caught.value)
    assert (caught.value.status, caught.value.retryable, len(calls)) == (status, False, 1)


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b'{"version":"v1"}', {}), (b'{"version":"v2"}', {}), (b"", {"x-s2-basin": "b"})],
)
def test_a_v1_answer_is_a_clear_error(body, headers):
    """Streams that are not in S2 are refused by name, with what to change."""
    with pytest.raises(StreamVersionError, match="version v1") as caught:
        read_grant(headers, body, SLOT)

    assert not caught.value.retryable


def test_missing_optional_headers_have_defaults():
    """Without endpoint, name, interval and retries: S2's cloud, the key, 200 ms, 10."""
    headers = {"x-s2-access-token": "t", "x-s2-basin": "my-basin"}
    grant = read_grant(headers, b'{"version":"v2"}', SLOT)

    assert grant.endpoint == "https://my-basin.b.s2.dev/v1"
    assert (grant.stream, grant.flush_interval, grant.max_retries) == ("a b", 0.2, 10)


def test_an_endpoint_without_a_path_gets_the_version():
    """An origin alone means its /v1."""
    headers = {"x-s2-access-token": "t", "x-s2-basin": "b", "x-s2-endpoint": "http://s2:80"}

    assert read_grant(headers, b'{"version":"v2"}', SLOT).endpoint == "http://s2:80/v1"


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.WriteError("gone"),
        OSError("no route"),
    ],
)
async def test_every_network_failure_is_unreachable(failure, no_waiting):
    """Whatever the HTTP client raises comes out as one retryable error with its cause."""

    def answer(_: httpx.Request) -> httpx.Response:
        raise failure

    with pytest.raises(ControlPlaneUnreachableError) as caught:
        await plane(answer).mint(SLOT)

    assert caught.value.retryable
    assert caught.value.__cause__ is failure
    assert len(no_waiting) == 4


async def test_an_address_that_is_none_is_refused():
    """A URL without a scheme is a final error that shows it."""
    async with ControlPlane("plane.example", KEY) as client:
        with pytest.raises(ControlPlaneRefusedError, match=r"plane\.example"):
            await client.mint(SLOT)


async def test_no_secret_in_errors_and_reprs():
    """Neither the key nor a token shows in any error's chain or in a repr."""
    client = plane(lambda _: httpx.Response(401, text="no"))
    with pytest.raises(ControlPlaneError) as caught:
        await client.mint(SLOT)
    shown = [repr(client), repr(client._headers), repr(caught.value), str(caught.value)]

    grant = read_grant(
        {key.lower(): value for key, value in GRANT.items()}, b'{"version":"v2"}', SLOT
    )
    shown.append(repr(grant))

    assert not [text for text in shown if KEY in text or "s2-token-secret" in text]


@pytest.mark.parametrize("key", ["", "two\nlines", "größe"])
def test_a_key_no_header_can_carry_is_refused_unseen(key):
    """A broken key is refused before an HTTP client could show it in an error."""
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        ControlPlane("http://plane", key)

    assert not key or key not in str(caught.value)


async def test_ping_asks_trigger_dev_something_it_knows():
    """Where the gateway's ping is unknown, a list of sessions proves the key."""
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(404 if "ping" in request.url.path else 200)

    await plane(answer).ping()

    assert paths == ["/platform/v1/ping", "/api/v1/sessions"]


async def test_ping_tells_a_wrong_key():
    """A 401 is an error with its status."""
    with pytest.raises(ControlPlaneRefusedError) as caught:
        await plane(lambda _: httpx.Response(401)).ping()

    assert caught.value.status == 401
