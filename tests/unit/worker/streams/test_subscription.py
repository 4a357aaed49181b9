"""The reader over a scripted control plane: httpx's own mock transport, no network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from td_worker.control_plane import ControlPlane
from td_worker.errors import ControlPlaneError
from td_worker.streams import subscription as subscription_module
from td_worker.streams.parts import Part
from td_worker.streams.policy import backoff
from td_worker.streams.subscription import ReadPolicy, Subscription

FAST = ReadPolicy(retry_base=0.001, retry_cap=0.002)
Answer = httpx.Response | Exception | Callable[[], Any]


class Script:
    """Answers requests one after another, the last answer for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        found: httpx.Response = await answer()
        return found

    def subscribe(
        self, policy: ReadPolicy = FAST, last_event_id: str | None = None, **more: Any
    ) -> Subscription:
        client = httpx.AsyncClient(transport=httpx.MockTransport(self))
        plane = ControlPlane("http://plane", "tr_dev_x", client=client)
        return Subscription(
            lambda cursor: plane.open_run_stream(
                "run_1", "a b", last_event_id=cursor, timeout_s=60
            ),
            last_event_id=last_event_id,
            policy=policy,
            **more,
        )


def sse(*seqs: int, ids: list[str] | None = None) -> bytes:
    bodies = [
        {"seq_num": seq, "body": json.dumps({"data": seq, "id": ids[n] if ids else f"w-{seq}"})}
        for n, seq in enumerate(seqs)
    ]
    return f"event: batch\nid: 0,1,2\ndata: {json.dumps({'records': bodies})}\n\n".encode()


def ok(content: Any, version: str = "v2") -> httpx.Response:
    headers = {"content-type": "text/event-stream", "x-stream-version": version}
    return httpx.Response(200, headers=headers, content=content)


async def breaking(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    raise httpx.ReadError("reset by peer")


async def stalling(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    await asyncio.Event().wait()


async def read_all(subscription: Subscription) -> list[Part]:
    return [part async for parts in subscription.batches() for part in parts]


@pytest.mark.conformance("SS1")
async def test_seven_network_failures_then_an_answer():
    """SS1: seven failures cost eight attempts, no error, and the chunk arrives."""
    script = Script(*[httpx.ConnectError("refused")] * 7, ok(sse(0)))

    assert [part.chunk for part in await read_all(script.subscribe())] == [0]
    assert len(script.requests) == 8


@pytest.mark.conformance("SS2")
async def test_a_reader_that_stops_makes_no_more_attempts():
    """SS2: closing after one chunk ends the connection, and no other is made."""
    script = Script(ok(breaking(sse(0), sse(1))))
    batches = script.subscribe().batches()
    first = await anext(batches)
    await batches.aclose()

    assert [part.chunk for part in first] == [0]
    assert len(script.requests) == 1


@pytest.mark.conformance("SS5")
async def test_a_caller_that_is_cancelled_in_back_off_ends_at_once():
    """SS5: cancelling during a long back-off makes no further attempt."""
    script = Script(httpx.ConnectError("refused"))
    policy = ReadPolicy(retry_base=60.0, retry_cap=60.0)
    task = asyncio.create_task(read_all(script.subscribe(policy)))
    while not script.requests:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(script.requests) == 1


@pytest.mark.conformance("SS3")
async def test_the_back_off_is_capped(delays):
    """SS3: with base 10 and cap 30, five failures wait 10, 20, 30, 30, 30 at the most."""
    script = Script(*[httpx.ConnectError("refused")] * 5, ok(sse(0)))
    policy = ReadPolicy(retry_base=0.01, retry_cap=0.03)

    assert len(await read_all(script.subscribe(policy))) == 1
    assert len(delays) == 5
    for delay, most in zip(delays, [0.01, 0.02, 0.03, 0.03, 0.03], strict=True):
        assert most / 2 <= delay <= most


@pytest.mark.conformance("SS14")
async def test_the_back_off_has_jitter(delays):
    """SS14: a delay is cut by a random part of itself, up to its half: no two hosts in step."""
    script = Script(*[httpx.ConnectError("refused")] * 20, ok(sse(0)))
    policy = ReadPolicy(retry_base=0.005, retry_cap=0.005, retry_jitter=0.5)
    await read_all(script.subscribe(policy))

    assert all(0.0025 <= delay <= 0.005 for delay in delays)
    assert len(set(delays)) > 1


@pytest.mark.conformance("SS4")
async def test_retry_now_ends_a_back_off():
    """SS4: in a back-off of a minute, `retry_now` makes the second attempt at once."""
    script = Script(httpx.ConnectError("refused"), ok(sse(0)))
    subscription = script.subscribe(ReadPolicy(retry_base=60.0, retry_cap=60.0))
    reading = asyncio.create_task(read_all(subscription))
    while not reading.done():
        await asyncio.sleep(0.001)
        subscription.retry_now()

    assert [part.chunk for part in await reading] == [0]
    assert len(script.requests) == 2


@pytest.mark.conformance("SS6")
@pytest.mark.parametrize(("version", "cursor"), [("v1", "1700-7"), ("v2", "7")])
async def test_a_forced_reconnect_resumes_after_the_last_event(version, cursor):
    """SS6: forced in the middle of a quiet body, the second request carries the last event id."""
    first, second = {
        "v1": (b"id: 1700-7\ndata: 7\n\n", b"id: 1700-8\ndata: 8\n\n"),
        "v2": (sse(7), sse(8)),
    }[version]
    script = Script(ok(stalling(first), version), ok(second, version))
    subscription = script.subscribe()
    batches = subscription.batches()
    assert [part.chunk for part in await anext(batches)] == [7]
    following = asyncio.create_task(anext(batches))
    await asyncio.sleep(0)
    subscription.force_reconnect()

    assert [part.chunk for part in await following] == [8]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, cursor]


@pytest.mark.conformance("SS7")
async def test_a_forced_reconnect_gives_up_an_attempt_that_hangs():
    """SS7: an attempt without an answer is aborted and the next one succeeds."""
    ended = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    script = Script(hang, ok(sse(0)))
    subscription = script.subscribe()
    reading = asyncio.create_task(read_all(subscription))
    while not script.requests:
        await asyncio.sleep(0)
    subscription.force_reconnect()

    assert [part.chunk for part in await reading] == [0]
    assert ended.is_set()
    assert len(script.requests) == 2


async def test_a_reconnect_that_nobody_was_reading_for_happens_at_the_next_read():
    """Forced while the consumer is busy with a batch, the connection is given up afterwards."""
    script = Script(ok(stalling(sse(1), sse(2))), ok(sse(5)))
    subscription = script.subscribe()
    batches = subscription.batches()
    await anext(batches)
    subscription.force_reconnect()

    assert [part.chunk for part in await anext(batches)] == [5]


@pytest.mark.conformance("SS12")
async def test_a_status_of_the_callers_is_final():
    """SS12: a status that the policy names is one attempt, and others are tried again."""
    script = Script(httpx.Response(404), httpx.Response(418))
    policy = ReadPolicy(retry_base=0.001, not_retried=frozenset({418}))
    with pytest.raises(ControlPlaneError) as caught:
        await read_all(script.subscribe(policy))

    assert caught.value.status == 418
    assert len(script.requests) == 2


async def test_failures_in_a_row_can_have_a_bound():
    """With `max_retries` the failure after the last retry is raised."""
    script = Script(httpx.ConnectError("refused"))
    policy = ReadPolicy(retry_base=0.001, max_retries=2)
    with pytest.raises(ControlPlaneError, match="refused"):
        await read_all(script.subscribe(policy))

    assert len(script.requests) == 3


async def test_control_records_go_their_own_way():
    """`on_control` gets them in order, with their headers; the batches are without them."""
    control = {"seq_num": 1, "body": "", "headers": [["trigger-control", "turn-complete"]]}
    data = [{"seq_num": n, "body": json.dumps({"data": n, "id": f"w-{n}"})} for n in (0, 2)]
    batch = json.dumps({"records": [data[0], control, data[1]]})
    script = Script(ok(f"event: batch\ndata: {batch}\n\n".encode()))
    routed: list[Part] = []
    parts = await read_all(script.subscribe(on_control=routed.append))

    assert [part.chunk for part in parts] == [0, 2]
    assert [(part.id, part.control) for part in routed] == [("1", "turn-complete")]


async def test_a_tail_goes_on_where_a_clean_end_left_it():
    """Reading the same subscription again resumes at its cursor and hides what it has seen."""
    script = Script(ok(sse(0, ids=["w-a"])), ok(sse(1, 2, ids=["w-a", "w-b"])))
    subscription = script.subscribe()

    assert [part.id for part in await read_all(subscription)] == ["0"]
    assert [part.id for part in await read_all(subscription)] == ["2"]
    assert script.requests[1].headers["last-event-id"] == "0"


async def test_an_answer_says_whether_the_session_is_settled():
    """`X-Session-Settled` of the newest answer is what `is_settled` says."""
    headers = {"content-type": "text/event-stream", "x-stream-version": "v2"}
    settled = httpx.Response(200, headers={**headers, "x-session-settled": "true"}, content=b"")
    script = Script(settled, ok(b""))
    subscription = script.subscribe()
    await read_all(subscription)
    assert subscription.is_settled
    await read_all(subscription)
    assert not subscription.is_settled


@pytest.fixture
def delays(monkeypatch) -> list[float]:
    """The back-offs that subscriptions have slept, in seconds."""
    found: list[float] = []

    def spy(attempt: int, *, base: float, cap: float, jitter: float) -> float:
        found.append(backoff(attempt, base=base, cap=cap, jitter=jitter))
        return found[-1]

    monkeypatch.setattr(subscription_module, "backoff", spy)
    return found


@pytest.mark.conformance("SS6")
async def test_a_reconnect_resumes_after_the_last_record():
    """SS6: the first request has no cursor, the second the last seq, and nothing is missing."""
    script = Script(ok(breaking(sse(6, 7))), ok(sse(8)))

    assert [part.chunk for part in await read_all(script.subscribe())] == [6, 7, 8]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, "7"]


@pytest.mark.conformance("SS6")
async def test_a_v1_reconnect_resumes_after_the_last_event():
    """SS6 on a v1 stream: its event id is sent back as it came."""
    first = ok(breaking(b"id: 1700-7\ndata: 7\n\n"), version="v1")
    script = Script(first, ok(b"id: 1700-8\ndata: 8\n\n", version="v1"))

    assert [part.chunk for part in await read_all(script.subscribe())] == [7, 8]
    assert script.requests[1].headers["last-event-id"] == "1700-7"


@pytest.mark.conformance("SS8")
async def test_headers_that_never_come_are_not_waited_for():
    """SS8: an attempt without headers in time is given up and made again."""

    async def hang() -> None:
        await asyncio.Event().wait()

    script = Script(hang, ok(sse(0)))
    policy = ReadPolicy(retry_base=0.001, header_timeout=0.05)

    assert [part.chunk for part in await read_all(script.subscribe(policy))] == [0]
    assert len(script.requests) == 2


@pytest.mark.conformance("SS9")
async def test_a_stalled_body_is_given_up_and_opened_again():
    """SS9: a body that says nothing for `stall_timeout` is left, and the next one resumes."""
    script = Script(ok(stalling(sse(3))), ok(sse(4)))
    policy = ReadPolicy(retry_base=0.001, stall_timeout=0.05)

    assert [part.chunk for part in await read_all(script.subscribe(policy))] == [3, 4]
    assert script.requests[1].headers["last-event-id"] == "3"


async def test_a_ping_is_no_silence():
    """Every event keeps a body alive, S2's pings included."""

    async def ping() -> AsyncIterator[bytes]:
        for _ in range(12):
            await asyncio.sleep(0.1)  # pings for longer than the body may be silent
            yield b"event: ping\ndata: {}\n\n"
        yield sse(0)

    script = Script(ok(ping()))
    policy = ReadPolicy(retry_base=0.001, stall_timeout=1.0)
    assert [part.chunk for part in await read_all(script.subscribe(policy))] == [0]
    assert len(script.requests) == 1


@pytest.mark.conformance("SS9")
async def test_a_silent_connection_counts_as_dead():
    """SS9: httpx's read timeout, half a minute over the asked-for silence, leads to another try."""
    script = Script(ok(silent()), ok(sse(0)))

    assert [part.chunk for part in await read_all(script.subscribe())] == [0]
    timeout = script.requests[0].extensions["timeout"]
    assert timeout["read"] == 90.0


async def silent() -> AsyncIterator[bytes]:
    raise httpx.ReadTimeout("silent")
    yield b""


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422])
@pytest.mark.conformance("SS10", "SS11", "SS12", "SS15", "SS16")
async def test_a_final_status_is_not_tried_again(status):
    """SS10, SS11, SS12, SS15, SS16: one attempt, and the error carries the status."""
    script = Script(httpx.Response(status, text="no"))
    with pytest.raises(ControlPlaneError) as caught:
        await read_all(script.subscribe())

    assert caught.value.status == status
    assert len(script.requests) == 1


@pytest.mark.conformance("SS13")
async def test_busy_answers_are_tried_again():
    """SS13: 503, 503, 200 are three attempts and no error."""
    script = Script(httpx.Response(503), httpx.Response(503), ok(sse(0)))

    assert [part.chunk for part in await read_all(script.subscribe())] == [0]
    assert len(script.requests) == 3


async def test_an_answered_connection_starts_the_back_off_anew():
    """The failure count returns to zero with every answer, so a long stream never slows down."""
    script = Script(*[ok(breaking(sse(n))) for n in range(40)], ok(sse(40)))
    parts = await read_all(script.subscribe(ReadPolicy(retry_base=0.0005, retry_cap=600.0)))

    assert [part.chunk for part in parts] == list(range(41))


async def test_a_clean_end_is_the_end():
    """A body that ends is not subscribed to again."""
    script = Script(ok(sse(0) + b"data: [DONE]\n\n"))

    assert len(await read_all(script.subscribe())) == 1
    assert len(script.requests) == 1


async def test_the_window_of_ids_outlives_a_reconnect():
    """A duplicate that straddles a reconnect is read once, unlike with the official SDK."""
    script = Script(ok(breaking(sse(0, ids=["w-a"]))), ok(sse(1, 2, ids=["w-a", "w-b"])))

    assert [part.id for part in await read_all(script.subscribe())] == ["0", "2"]


async def test_line_separators_of_unicode_are_no_line_ends():
    """U+2028, U+0085 and form feeds inside a chunk do not tear an event apart."""
    body = json.dumps({"data": "a\u2028b\u0085c\x0cd", "id": "w-1"}, ensure_ascii=False)
    data = json.dumps({"records": [{"seq_num": 0, "body": body}]}, ensure_ascii=False)
    script = Script(ok(f"event: batch\ndata: {data}\n\n".encode()))

    assert [part.chunk for part in await read_all(script.subscribe())] == ["a\u2028b\u0085c\x0cd"]


async def test_the_request_is_the_official_one():
    """Path segments are encoded; Accept, Timeout-Seconds and the cursor are sent."""
    script = Script(ok(b""))
    await read_all(script.subscribe(last_event_id="41"))

    request = script.requests[0]
    assert request.url.raw_path == b"/realtime/v1/streams/run_1/a%20b"
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["timeout-seconds"] == "60"
    assert request.headers["last-event-id"] == "41"


async def test_an_answer_that_is_no_event_stream_is_refused():
    """A proxy's login page ends the read with an error, not in endless retries."""
    page = httpx.Response(200, headers={"content-type": "text/html"}, text="<html>")
    script = Script(page)
    with pytest.raises(ControlPlaneError, match="server-sent events"):
        await read_all(script.subscribe())
