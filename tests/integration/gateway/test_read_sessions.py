from __future__ import annotations

import base64
import itertools

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import (
    Event,
    Stream,
    as_owner,
    events,
    mint,
    read_events,
)

SSE = {"accept": "text/event-stream"}


def bodies(found: list[Event]) -> list[str]:
    return [r["body"] for e in found if e.name == "batch" for r in e.data["records"]]


def session(owner: Stream, **query: object) -> list[Event]:
    return read_events(f"{owner.url}/records", owner.headers, **query)


def test_a_bounded_session_sends_what_is_there_and_ends(gateway: GatewayProcess) -> None:
    """With a bound and no wait the session ends at the tail, with `[DONE]` and no ping."""
    writer = mint(gateway, "bounded")
    writer.append("a", "b", "c")

    found = session(as_owner(gateway, writer), seq_num=0, count=10)

    assert [(e.name, e.id) for e in found] == [("batch", "2,3,27"), ("", "")]
    assert found[0].data["tail"]["seq_num"] == 3
    assert (bodies(found), found[-1].data) == (["a", "b", "c"], "[DONE]")


def test_a_session_stops_at_its_count(gateway: GatewayProcess) -> None:
    """A session without wait for ever ends as soon as its count is reached."""
    writer = mint(gateway, "count")
    writer.append("a", "b", "c")

    found = session(as_owner(gateway, writer), seq_num=0, count=2, wait=60)

    assert bodies(found) == ["a", "b"]
    assert found[-1].data == "[DONE]"


def test_a_session_resumes_from_its_event_id(gateway: GatewayProcess) -> None:
    """The triple seq,count,bytes moves the start and takes off what was already delivered."""
    writer = mint(gateway, "resume")
    writer.append("a", "b", "c", "d", "e")
    owner = as_owner(gateway, writer)

    first = session(owner, seq_num=0, count=2)
    second = read_events(
        f"{owner.url}/records",
        {**owner.headers, "last-event-id": first[0].id},
        seq_num=0,
        count=4,
    )
    broken = owner.get(seq_num=0, headers={**SSE, "last-event-id": "7"})

    assert first[0].id == "1,2,18"
    assert bodies(first) + bodies(second) == ["a", "b", "c", "d"]
    assert (broken.status_code, broken.json()["code"]) == (400, "bad_header")


def test_a_session_needs_somewhere_to_start(gateway: GatewayProcess) -> None:
    """What a session may not wait for is a plain 416 before any event."""
    owner = as_owner(gateway, mint(gateway, "nothing"))

    answers = [owner.get(headers=SSE, seq_num=0, wait=0), owner.get(headers=SSE, seq_num=5)]

    assert [a.status_code for a in answers] == [416, 416]


def test_a_follower_is_told_at_once(gateway: GatewayProcess) -> None:
    """A session that waits sends a ping first, then each batch when it is appended."""
    writer = mint(gateway, "follow")
    owner = as_owner(gateway, writer)

    with httpx.stream(
        "GET", f"{owner.url}/records?seq_num=0", headers={**owner.headers, **SSE}, timeout=30
    ) as answer:
        found = events(answer.iter_lines())
        ping = next(found)
        received = []
        for body in ("one", "two", "three"):
            writer.append(body)
            received.append(next(e for e in found if e.name == "batch"))

    assert (ping.name, ping.data["tail"]["seq_num"]) == ("ping", 0)
    assert bodies(received) == ["one", "two", "three"]
    assert [e.id for e in received] == ["0,1,11", "1,2,22", "2,3,35"]
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"


def test_every_follower_gets_everything(gateway: GatewayProcess) -> None:
    """Followers of one stream do not take from each other, and other streams wake nobody."""
    writer, other = mint(gateway, "many"), mint(gateway, "other")
    owner = as_owner(gateway, writer)
    url, headers = f"{owner.url}/records?seq_num=0&count=2", {**owner.headers, **SSE}

    with (
        httpx.stream("GET", f"{url}&wait=60", headers=headers, timeout=30) as first,
        httpx.stream("GET", f"{url}&wait=60", headers=headers, timeout=30) as second,
    ):
        other.append("noise")
        writer.append("a")
        writer.append("b")
        found = [bodies(list(events(answer.iter_lines()))) for answer in (first, second)]

    assert found == [["a", "b"], ["a", "b"]]


def test_a_long_stream_comes_in_order(gateway: GatewayProcess) -> None:
    """A session over more than one read's worth sends every record once, in order."""
    writer = mint(gateway, "long")
    for start in range(0, 3000, 600):
        writer.append(*[str(n) for n in range(start, start + 600)])

    found = session(as_owner(gateway, writer), seq_num=0, wait=0)

    assert bodies(found) == [str(n) for n in range(3000)]
    counts = [len(e.data["records"]) for e in found if e.name == "batch"]
    ids = [e.id.split(",")[1] for e in found if e.name == "batch"]
    assert ids == [str(n) for n in itertools.accumulate(counts)]


def test_base64_in_a_session(gateway: GatewayProcess) -> None:
    """A session obeys `s2-format`; raw text replaces what is no UTF-8."""
    writer = mint(gateway, "bytes")
    owner = as_owner(gateway, writer)
    body = base64.b64encode(b"\xff!").decode()
    writer.post({"records": [{"body": body}]}, **{"s2-format": "base64"})

    url = f"{owner.url}/records"
    coded = read_events(url, {**owner.headers, "s2-format": "base64"}, seq_num=0, count=1)
    raw = read_events(url, owner.headers, seq_num=0, count=1)

    assert (bodies(coded), bodies(raw)) == ([body], ["\ufffd!"])


def test_the_gateway_breaks_sessions_off_when_it_stops(own_gateway: GatewayProcess) -> None:
    """A stop ends open sessions without `[DONE]`, so that readers know to come back."""
    writer = mint(own_gateway, "stop")
    writer.append("a")
    owner = as_owner(own_gateway, writer)

    with httpx.stream(
        "GET", f"{owner.url}/records?seq_num=0", headers={**owner.headers, **SSE}, timeout=30
    ) as answer:
        found = events(answer.iter_lines())
        assert next(found).name == "batch"
        code = own_gateway.stop()
        with pytest.raises(httpx.RemoteProtocolError):
            list(found)

    assert code == 0
    assert own_gateway.events[-1]["is_clean"] is True
