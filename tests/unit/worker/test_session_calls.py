"""What sessions ask of the control plane, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from td_sharedcache.slot import Slot
from td_worker.control_plane import ControlPlane
from td_worker.errors import (
    ControlPlaneBusyError,
    ControlPlaneRefusedError,
    SessionClosedError,
    SessionReadError,
)
from td_worker.session_calls import ChannelSide, check_cursor, control_headers, new_part_id
from td_worker.streams.canonical import known_slot
from td_worker.testing import run_platform

Answer = Callable[[httpx.Request], httpx.Response]


def plane(answer: Answer) -> ControlPlane:
    """Return a client whose server is a function."""
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return ControlPlane("http://control.plane", "tr_dev_x", client=client)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited for, which take no time."""
    waited: list[float] = []

    async def note(delay: float, *_: Any) -> None:
        waited.append(delay)

    monkeypatch.setattr(asyncio, "sleep", note)
    return waited


async def test_a_call_is_tried_as_the_official_client_does(waits: list[float]):
    """Five tries with its delays, one idempotency key, and each with its length."""
    keys: set[str] = set()

    def answer(request: httpx.Request) -> httpx.Response:
        keys.add(request.headers["x-trigger-request-idempotency-key"])
        assert request.headers["content-length"] == "2"
        assert request.headers["x-part-id"] == "p"
        return httpx.Response(409 if len(waits) < 2 else 503, json={"error": "busy"})

    with pytest.raises(ControlPlaneBusyError):
        await plane(answer).call("POST", "/a", body=b"{}", headers={"x-part-id": "p"})
    assert waits == pytest.approx([1.0, 1.6, 2.56, 4.096])
    assert len(keys) == 1


@pytest.mark.parametrize("text", ["The session is closed", "The session has expired"])
async def test_a_session_that_is_over_is_not_asked_for_again(waits: list[float], text: str):
    """Gap 9: 409 on a start is final, and says what to do."""
    with pytest.raises(SessionClosedError, match="start another one") as caught:
        await plane(lambda _: httpx.Response(409, json={"error": text})).call(
            "POST", "/api/v1/sessions", retries_conflict=False
        )
    assert caught.value.status == 409
    assert waits == []


async def test_any_other_conflict_of_a_start_is_final_too(waits: list[float]):
    """A start that is answered 409 is never repeated."""
    with pytest.raises(ControlPlaneBusyError):
        await plane(lambda _: httpx.Response(409, json={"error": "?"})).call(
            "POST", "/api/v1/sessions", retries_conflict=False
        )
    assert waits == []


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "Check the secret key"),
        (403, "root key may"),
        (404, "must have been started"),
        (413, "Store what is so large elsewhere"),
        (422, "no use"),
    ],
)
async def test_each_refusal_says_what_to_do(status: int, advice: str):
    """A refusal of a session route names the route, the status, the reason and the way out."""
    with pytest.raises(ControlPlaneRefusedError, match=advice) as caught:
        await plane(lambda _: httpx.Response(status, json={"error": "because"})).call(
            "GET", "/api/v1/sessions/a"
        )
    assert "(GET /api/v1/sessions/a)" in str(caught.value)
    assert f"answered {status}: because" in str(caught.value)


async def test_an_id_is_resolved_once():
    """The canonical id of a session is asked for once, and never for an external one."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        external = "order-17" if request.url.path.endswith("session_1") else None
        return httpx.Response(200, json={"externalId": external})

    control_plane = plane(answer)
    slot = Slot.session("session_1", "main", "out")
    assert known_slot(slot, control_plane) is None
    for _ in range(2):
        assert await control_plane.canonical_id("session_1") == "order-17"
        assert await control_plane.canonical_id("session_2") == "session_2"
        assert await control_plane.canonical_id("order-17") == "order-17"

    assert known_slot(slot, control_plane) == Slot.session("order-17", "main", "out")
    assert asked == ["/api/v1/sessions/session_1", "/api/v1/sessions/session_2"]


def test_part_ids_are_the_official_ones():
    """21 characters of the URL-safe alphabet, never the same twice."""
    ids = {new_part_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert {len(one) for one in ids} == {21}


@pytest.mark.parametrize("cursor", ["", "abc", "1,2,3", "-1", -1, "1.5"])
def test_a_cursor_is_a_number(cursor: str | int):
    """Gap 8: what a server would read as the beginning is refused."""
    with pytest.raises(ValueError, match="sequence number"):
        check_cursor(cursor)


def test_control_headers_begin_with_the_subtype():
    """A control record's first header is its subtype; further ones may be pairs or a mapping."""
    assert control_headers("a", {"b": "c"}) == [("trigger-control", "a"), ("b", "c")]
    assert control_headers("a", [("b", "c"), ("b", "d")])[1:] == [("b", "c"), ("b", "d")]
    with pytest.raises(ValueError, match="subtype"):
        control_headers("", ())


async def test_claims_that_are_none_are_the_control_plane_s_error():
    """A turn's end, which goes on without a token, must be told by the one error it knows."""
    nonsense = plane(lambda _: httpx.Response(200, content=b"<html>"))
    with pytest.raises(ControlPlaneRefusedError, match="public access token"):
        await nonsense.public_access_token(["read:sessions:c"], 60)


async def test_an_answer_that_is_none_is_told_by_the_errors_of_sessions(
    monkeypatch: pytest.MonkeyPatch,
):
    """What a proxy answers in the control plane's place raises what `send` and `records` name."""

    async def nonsense(*_: Any, **__: Any) -> bytes:
        return b"<html>"

    monkeypatch.setattr(ControlPlane, "call", nonsense)
    with run_platform() as platform, platform.execution():
        side = ChannelSide("c", "main", "in")
        with pytest.raises(ControlPlaneRefusedError, match="no receipt"):
            await asyncio.wrap_future(side.send({"a": 1}))
        with pytest.raises(SessionReadError, match="no list of records"):
            await asyncio.wrap_future(side.records(None))
