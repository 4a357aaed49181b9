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
from td_worker.streams.parts import Part
from td_worker.streams.reader import ReadPolicy, Subscription

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
        self, policy: ReadPolicy = FAST, last_event_id: str | None = None
    ) -> Subscription:
        client = httpx.AsyncClient(transport=httpx.MockTransport(self))
        plane = ControlPlane("http://plane", "tr_dev_x", client=client)
        return Subscription(
            lambda cursor: plane.open_run_stream(
                "run_1", "a b", last_event_id=cursor, timeout_s=60
            ),
            last_event_id=last_event_id,
            policy=policy,
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


async def read_all(subscription: Subscription) -> list[Part]:
    return [part async for parts in subscription.batches() for part in parts]


async def test_seven_network_failures_then_an_answer():
    """SS1: seven failures cost eight attempts, no error, and the chunk arrives."""
    script = Script(*[httpx.ConnectError("refused")] * 7, ok(sse(0)))

    assert [part.chunk for part in await read_all(script.subscribe())] == [0]
    assert len(script.requests) == 8


async def test_a_reader_that_stops_makes_no_more_attempts():
    """SS2: closing after one chunk ends the connection, and no other is made."""
    script = Script(ok(breaking(sse(0), sse(1))))
    batches = script.subscribe().batches()
    first = await anext(batches)
    await batches.aclose()

    assert [part.chunk for part in first] == [0]
    assert len(script.requests) == 1


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


async def test_a_reconnect_resumes_after_the_last_record():
    """SS6: the first request has no cursor, the second the last seq, and nothing is missing."""
    script = Script(ok(breaking(sse(6, 7))), ok(sse(8)))

    assert [part.chunk for part in await read_all(script.subscribe())] == [6, 7, 8]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, "7"]


async def test_a_v1_reconnect_resumes_after_the_last_event():
    """SS6 on a v1 stream: its event id is sent back as it came."""
    first = ok(breaking(b"id: 1700-7\ndata: 7\n\n"), version="v1")
    script = Script(first, ok(b"id: 1700-8\ndata: 8\n\n", version="v1"))

    assert [part.chunk for part in await read_all(script.subscribe())] == [7, 8]
    assert script.requests[1].headers["last-event-id"] == "1700-7"


async def test_headers_that_never_come_are_not_waited_for():
    """SS8: an attempt without headers in time is given up and made again."""

    async def hang() -> None:
        await asyncio.Event().wait()

    script = Script(hang, ok(sse(0)))
    policy = ReadPolicy(retry_base=0.001, header_timeout=0.05)

    assert [part.chunk for part in await read_all(script.subscribe(policy))] == [0]
    assert len(script.requests) == 2


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
async def test_a_final_status_is_not_tried_again(status):
    """SS10, SS11, SS12, SS15, SS16: one attempt, and the error carries the status."""
    script = Script(httpx.Response(status, text="no"))
    with pytest.raises(ControlPlaneError) as caught:
        await read_all(script.subscribe())

    assert caught.value.status == status
    assert len(script.requests) == 1


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
