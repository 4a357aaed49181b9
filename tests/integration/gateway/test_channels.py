"""Channels of sessions that have no row, which is all that a gateway without a supervisor has."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.gateway_process import GatewayProcess, start_gateway
from tests.integration.gateway.client import Event, Stream, as_owner, read_events
from tests.integration.gateway.h2_session import append_input, append_session, frame
from tests.integration.gateway.public_tokens import bearer

ORIGIN = "https://app.example"
TURN_COMPLETE = {"headers": [["trigger-control", "turn-complete"]]}


@pytest.fixture(scope="module")
def module_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with start_gateway(tmp_path_factory.mktemp("gateway"), allow_origins=(ORIGIN,)) as process:
        process.add_run("run_1")
        yield process


def url(session: str, tail: str) -> str:
    return f"/realtime/v1/sessions/{quote(session, safe='')}/{tail}"


def request(
    gateway: GatewayProcess, method: str, session: str, tail: str, **more: Any
) -> httpx.Response:
    headers = {**gateway.headers, **more.pop("headers", {})}
    return httpx.request(
        method, gateway.url + url(session, tail), headers=headers, timeout=30, **more
    )


def mint(gateway: GatewayProcess, session: str, io: str, **headers: str) -> Stream:
    """A channel as the holder of a credential has it in the stream store."""
    answer = request(gateway, "PUT", session, io, headers=headers)
    assert answer.status_code == 202, answer.text
    return Stream(
        url=f"{answer.headers['x-s2-endpoint']}/streams/"
        + quote(answer.headers["x-s2-stream-name"], safe=""),
        headers={
            "authorization": f"Bearer {answer.headers['x-s2-access-token']}",
            "s2-basin": answer.headers["x-s2-basin"],
        },
    )


def open_channel(gateway: GatewayProcess, session: str, io: str = "out") -> Stream:
    """A channel as its owner sees it in the stream store."""
    return as_owner(gateway, mint(gateway, session, io))


def chunk(n: int) -> dict[str, Any]:
    return {"body": json.dumps({"data": {"n": n}, "id": f"part-{n}"})}


def subscribe(
    gateway: GatewayProcess, session: str, io: str = "out", **headers: str
) -> list[Event]:
    """All of a channel's events until one second was quiet."""
    sent = {"Timeout-Seconds": "1", **gateway.headers, **headers}
    return read_events(gateway.url + url(session, io), sent)


def records(events: list[Event]) -> list[dict[str, Any]]:
    """What a consumer sees: S2's own commands are dropped, as every official reader does."""
    found = [
        record for event in events if event.name == "batch" for record in event.data["records"]
    ]
    return [r for r in found if all(name for name, _ in r.get("headers", []))]


def data_of(found: list[dict[str, Any]]) -> list[Any]:
    return [json.loads(r["body"])["data"]["n"] for r in found if "body" in r]


def test_put_hands_out_a_credential(gateway: GatewayProcess) -> None:
    """A PUT answers 202 with version v2 and upstream's headers; the stream is the session's."""
    answer = request(gateway, "PUT", "chat 1/ü", "out")

    assert (answer.status_code, answer.json()) == (202, {"version": "v2"})
    given = {k: v for k, v in answer.headers.items() if k.startswith("x-s2-")}
    assert len(given.pop("x-s2-access-token")) > 40
    assert given.pop("x-s2-stream-name") == "sessions/chat 1/ü/out"
    assert given == {
        "x-s2-basin": "td-embedded",
        "x-s2-flush-interval-ms": "100",
        "x-s2-max-retries": "10",
        "x-s2-endpoint": f"{gateway.url}/v1",
    }


def test_only_the_secret_key_initializes_out(gateway: GatewayProcess) -> None:
    """A public token may PUT `in` of its session alone, and `out` of none (403 in text)."""
    headers = bearer(gateway.secret_key, "write:sessions:s1")

    mine = request(gateway, "PUT", "s1", "in", headers=headers)
    out = request(gateway, "PUT", "s1", "out", headers=headers)
    other = request(gateway, "PUT", "s2", "in", headers=headers)

    assert [a.status_code for a in (mine, out, other)] == [202, 403, 403]
    assert out.headers["content-type"].startswith("text/plain")
    assert other.json()["code"] == "unauthorized"


def test_who_may_send_may_not_delete(gateway: GatewayProcess) -> None:
    """A credential for `in` trims if the secret key minted it; a public token's only appends."""
    trim = {"records": [{"body": "\0" * 8, "headers": [["", "trim"]]}]}
    theirs = mint(gateway, "sender", "in", **bearer(gateway.secret_key, "write:sessions:sender"))
    ours = mint(gateway, "sender", "in")

    answers = [theirs.append("x"), theirs.post(trim), ours.post(trim)]

    assert [answer.status_code for answer in answers] == [200, 403, 200]


def test_an_id_that_only_we_could_have_given(gateway: GatewayProcess) -> None:
    """An unknown `session_…` is 404: in text for a PUT, in JSON else; other ids need no row."""
    put = request(gateway, "PUT", "session_none", "out")
    side = request(gateway, "PUT", "session_none", "channels/side/out")
    append = request(gateway, "POST", "session_none", "in/append", content=b"x")
    read = request(gateway, "GET", "session_none", "out")

    assert [a.status_code for a in (put, side, append, read)] == [404] * 4
    assert (put.text, side.text) == ("Session not found", "Session not found")
    assert append.json() == {"ok": False, "error": "Session not found"}
    assert read.headers["x-should-retry"] == "false"


def test_mints_count_by_slot(gateway: GatewayProcess) -> None:
    """PUTs of a session's channels count by slot; a side channel is a slot of its own, once."""
    request(gateway, "PUT", "counted", "out")
    request(gateway, "PUT", "counted", "channels/side/out")
    request(gateway, "PUT", "counted", "in", headers={"authorization": "Bearer wrong"})

    puts = gateway.stats()["puts"]
    assert {slot: n for slot, n in puts.items() if slot.startswith("session/counted/")} == {
        "session/counted/main/out": 1,
        "session/counted/side/out": 1,
        "session/counted/main/in": 1,
    }


@pytest.mark.conformance("E1")
def test_a_turn_arrives_in_order(gateway: GatewayProcess) -> None:
    """E1: three chunks and turn-complete reach a subscriber in order, numbers ascending."""
    stream = open_channel(gateway, "e1")
    stream.post({"records": [chunk(0), chunk(1), chunk(2), TURN_COMPLETE]})

    found = records(subscribe(gateway, "e1"))

    assert data_of(found) == [0, 1, 2]
    assert [r["seq_num"] for r in found] == [0, 1, 2, 3]
    assert found[3]["headers"] == [["trigger-control", "turn-complete"]]


@pytest.mark.conformance("E2")
def test_two_turns_on_one_channel(gateway: GatewayProcess) -> None:
    """E2: two turns show two turn-completes; the numbers ascend, and the second one is the last."""
    stream = open_channel(gateway, "e2")
    for n in range(2):
        stream.post({"records": [chunk(n), TURN_COMPLETE]})

    found = records(subscribe(gateway, "e2"))

    numbers = [r["seq_num"] for r in found]
    completes = [r["seq_num"] for r in found if "headers" in r]
    assert numbers == sorted(set(numbers))
    assert (len(completes), completes[-1]) == (2, max(numbers))


@pytest.mark.conformance("E5")
def test_resume_repeats_nothing(gateway: GatewayProcess) -> None:
    """E5: a second connection with the last event's id goes on right behind it."""
    stream = open_channel(gateway, "e5")
    stream.post({"records": [chunk(0), chunk(1)]})
    first = records(subscribe(gateway, "e5"))
    stream.post({"records": [chunk(2)]})

    second = records(subscribe(gateway, "e5", **{"Last-Event-ID": str(first[-1]["seq_num"])}))

    assert data_of(first) + data_of(second) == [0, 1, 2]


@pytest.mark.conformance("E7")
def test_a_trim_reaches_no_consumer(gateway: GatewayProcess) -> None:
    """E7: after a trim the data behind it is delivered; the records route shows no command."""
    stream = open_channel(gateway, "e7")
    stream.post({"records": [chunk(0), chunk(1)]})
    trim = {"headers": [["", base64.b64encode(b"trim").decode()]], "body": "AAAAAAAAAAE="}
    encoded = base64.b64encode(chunk(2)["body"].encode()).decode()
    stream.post({"records": [trim, {"body": encoded}]}, **{"s2-format": "base64"})

    found = records(subscribe(gateway, "e7"))
    drained = request(gateway, "GET", "e7", "out/records").json()["records"]

    assert data_of(found) == [1, 2]
    assert [r["data"]["n"] for r in drained] == [1, 2]
    assert [r["seqNum"] for r in drained] == [1, 3]


@pytest.mark.conformance("E8", "EB1")
def test_an_error_can_be_read_across_origins(gateway: GatewayProcess) -> None:
    """E8: an append of 2 MiB from a page is 413, and the page may see that."""
    answer = request(
        gateway, "POST", "e8", "in/append", content=b"x" * (2 << 20), headers={"origin": ORIGIN}
    )

    assert (answer.status_code, answer.json()) == (413, {"error": "Request body too large"})
    assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.conformance("E9")
def test_a_settled_session_ends_at_once(gateway: GatewayProcess) -> None:
    """E9: peeking at a channel that ends with turn-complete (a trim may follow) closes at once."""
    stream = open_channel(gateway, "e9")
    peek = {"X-Peek-Settled": "1", "Timeout-Seconds": "600"}
    stream.post({"records": [chunk(0), TURN_COMPLETE]})
    settled = request(gateway, "GET", "e9", "out", headers=peek)
    trim = {"headers": [["", base64.b64encode(b"trim").decode()]], "body": "AAAAAAAAAAA="}
    stream.post({"records": [trim]}, **{"s2-format": "base64"})
    trimmed = request(gateway, "GET", "e9", "out", headers=peek)

    for answer in (settled, trimmed):
        assert (answer.status_code, answer.headers["x-session-settled"]) == (200, "true")
        assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.conformance("E9")
def test_an_unsettled_session_is_waited_for(gateway: GatewayProcess) -> None:
    """Without turn-complete at the end, on `in`, or unasked, nothing is said to be settled."""
    open_channel(gateway, "e9b").post({"records": [TURN_COMPLETE, chunk(0)]})
    open_channel(gateway, "e9b", "in").post({"records": [TURN_COMPLETE]})
    open_channel(gateway, "e9c").post({"records": [TURN_COMPLETE]})
    peek = {"X-Peek-Settled": "1", "Timeout-Seconds": "1"}

    answers = [
        request(gateway, "GET", "e9b", "out", headers=peek),
        request(gateway, "GET", "e9b", "in", headers=peek),
        request(gateway, "GET", "e9-new", "out", headers=peek),
        request(gateway, "GET", "e9c", "out", headers={"Timeout-Seconds": "1"}),
    ]

    assert [a.status_code for a in answers] == [200] * 4
    assert not [a for a in answers if "x-session-settled" in a.headers]


@pytest.mark.conformance("E11")
def test_an_append_arrives_as_text(gateway: GatewayProcess) -> None:
    """E11: an append with a part id is 200 with the record's number; its data is the text sent."""
    body = '{"kind": "message", "payload": {"text": "hellö"}}'
    answer = request(
        gateway, "POST", "e11", "in/append", content=body.encode(), headers={"X-Part-Id": "p"}
    )

    (found,) = records(subscribe(gateway, "e11", "in"))
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "seq": 0})
    assert json.loads(found["body"]) == {"data": body, "id": "p"}


def test_a_part_is_stored_once(gateway: GatewayProcess) -> None:
    """A part id sent again is answered ok without a number; another stream may use it, too."""

    def append(session: str, part_id: str | None) -> dict[str, Any]:
        headers = {} if part_id is None else {"X-Part-Id": part_id}
        answer = request(gateway, "POST", session, "in/append", content=b"x", headers=headers)
        result: dict[str, Any] = answer.json()
        return result

    assert [append("once", "p1"), append("once", "p1"), append("once", "p2")] == [
        {"ok": True, "seq": 0},
        {"ok": True},
        {"ok": True, "seq": 1},
    ]
    assert append("once-more", "p1") == {"ok": True, "seq": 0}
    assert [append("none", None), append("none", None)] == [
        {"ok": True, "seq": 0},
        {"ok": True, "seq": 1},
    ]


def test_a_part_that_was_not_stored_may_come_again(gateway: GatewayProcess) -> None:
    """A record refused as too large gives its part id back."""
    headers = {"X-Part-Id": "p"}
    large = request(
        gateway, "POST", "again", "in/append", content=b"\x01" * (1 << 20), headers=headers
    )
    small = request(gateway, "POST", "again", "in/append", content=b"x", headers=headers)

    assert (large.status_code, large.json()["ok"]) == (413, False)
    assert small.json() == {"ok": True, "seq": 0}


@pytest.mark.conformance("E12")
@pytest.mark.parametrize(
    "claims",
    [
        {"key": "another key"},
        {"life_s": -1.0},
        {"iss": "https://evil.example"},
        {"aud": "https://evil.example"},
        {"pub": None},
        {"pub": False},
        {"exp": None},
        {"scopes": "read:sessions:s"},
        {"scopes": None},
    ],
)
def test_a_bad_token_is_refused(gateway: GatewayProcess, claims: dict[str, Any]) -> None:
    """E12: a token of another key, expired, unmarked or without scopes reads nothing."""
    key = claims.pop("key", gateway.secret_key)
    answer = request(gateway, "GET", "s", "out", headers=bearer(key, "read:sessions:s", **claims))

    assert answer.status_code in (401, 403)
    assert answer.json()["error"]


def test_an_unsigned_token_is_refused(gateway: GatewayProcess) -> None:
    """A token that says it needs no signature is no token."""
    signed = bearer(gateway.secret_key, "read:sessions:s")["authorization"]
    _, claims, signature = signed.removeprefix("Bearer ").split(".")
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()

    for token in (f"{header}.{claims}.", f"{header}.{claims}.{signature}", "..", "a.b.c"):
        answer = request(gateway, "GET", "s", "out", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("scope", "session", "status"),
    [
        ("read:sessions:s", "s", 200),
        ("read:sessions", "s", 200),
        ("admin", "s", 200),
        ("read:sessions:t", "s", 403),
        ("read:sessions:s", "s2", 403),
        ("write:sessions:s", "s", 403),
        ("read:runs:s", "s", 403),
        ("read:sessions:chat:1", "chat:1", 200),
        ("read:sessions:chat", "chat:1", 403),
    ],
)
def test_scopes(gateway: GatewayProcess, scope: str, session: str, status: int) -> None:
    """A token reads what its scopes name: a session with its side channels, and no other."""
    headers = bearer(gateway.secret_key, scope)

    drained = request(gateway, "GET", session, "out/records", headers=headers)
    probed = request(gateway, "HEAD", session, "out", headers=headers)

    assert (drained.status_code, probed.status_code) == (status, status)


@pytest.mark.parametrize(
    ("scope", "status"),
    [("read:sessions:s", 200), ("read:sessions:side", 403), ("read:sessions:t", 403)],
)
def test_scopes_of_a_side_channel(gateway: GatewayProcess, scope: str, status: int) -> None:
    """Who may read a session may read its side channels, and nobody else may."""
    headers = bearer(gateway.secret_key, scope)

    drained = request(gateway, "GET", "s", "channels/side/out/records", headers=headers)

    assert drained.status_code == status


def test_a_side_channel_is_no_session(gateway: GatewayProcess) -> None:
    """No session, whatever its id, shares a stream with a side channel of another one."""
    ids = ["own~side", "own/channels/side", "own/side", "channels/own/side"]
    request(gateway, "POST", "own", "channels/side/out/append", content=b"beside")
    for session in ids:
        request(gateway, "POST", session, "out/append", content=session.encode())

    drained = [request(gateway, "GET", s, "out/records").json()["records"] for s in ids]
    beside = request(gateway, "GET", "own", "channels/side/out/records").json()["records"]

    assert [[r["data"] for r in records] for records in drained] == [[s] for s in ids]
    assert [record["data"] for record in beside] == ["beside"]


def test_a_reader_may_not_write(gateway: GatewayProcess) -> None:
    """Appends need a write scope, and to `out` the secret key; the refusals are JSON."""
    reader = bearer(gateway.secret_key, "read:sessions:s")
    writer = bearer(gateway.secret_key, "write:sessions:s")

    answers = [
        request(gateway, "POST", "s", f"{io}/append", content=b"x", headers=headers)
        for io, headers in (("in", reader), ("in", writer), ("out", writer), ("out", {}))
    ]

    assert [a.status_code for a in answers] == [403, 200, 403, 200]
    assert answers[2].json()["ok"] is False


FORGED = '{"kind":"message","payload":{"actionSource":"webhook","text":"hi ü","n":1.5}}'


@pytest.mark.conformance("SI1")
@pytest.mark.parametrize("key", ["actionSource", "action\\u0053ource", "\\u0061ctionSource"])
def test_a_forged_source_is_stripped(gateway: GatewayProcess, key: str) -> None:
    """SI1: `actionSource: webhook` of a client is taken out, however spelled; the rest stays."""
    session = f"si1{key}"
    body = FORGED.replace("actionSource", key)
    request(gateway, "POST", session, "in/append", content=body.encode())

    (found,) = records(subscribe(gateway, session, "in"))
    text = json.loads(found["body"])["data"]
    assert json.loads(text) == {"kind": "message", "payload": {"text": "hi ü", "n": 1.5}}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            '{ "payload": {"actionSource": "button"} }', marks=pytest.mark.conformance("SI2")
        ),
        pytest.param(
            '{"kind" : "message",  "payload":{"text":"\\u00fc"}}',
            marks=pytest.mark.conformance("SI3"),
        ),
        pytest.param('{"actionSource": "webhook"', marks=pytest.mark.conformance("SI4")),
        pytest.param('["actionSource", "webhook"]', marks=pytest.mark.conformance("SI4")),
        pytest.param("actionSource webhook", marks=pytest.mark.conformance("SI4")),
        pytest.param('{"actionSource": "webhook"}', marks=pytest.mark.conformance("SI3")),
    ],
)
def test_other_messages_stay_as_they_are(gateway: GatewayProcess, body: str) -> None:
    """SI2, SI3, SI4: another source, an ordinary message and what is no JSON pass byte for byte."""
    session = f"si{abs(hash(body))}"
    request(gateway, "POST", session, "in/append", content=body.encode())

    (found,) = records(subscribe(gateway, session, "in"))
    assert json.loads(found["body"])["data"] == body


def sender(gateway: GatewayProcess, session: str, **claims: Any) -> Stream:
    """A session's `in` as the holder of a public token has it in the stream store."""
    return mint(
        gateway, session, "in", **bearer(gateway.secret_key, f"write:sessions:{session}", **claims)
    )


def envelope(data: object) -> str:
    return json.dumps({"data": data, "id": "part-1"})


def test_a_senders_records_are_stripped_too(gateway: GatewayProcess) -> None:
    """SI1 in the stream store: as a text, an object or without an envelope, on every wire."""
    stream = sender(gateway, "si1-raw")
    forged = json.loads(FORGED)
    escaped = envelope(FORGED).replace("actionSource", "action\\u0053ource")
    bodies = [envelope(FORGED), envelope(forged), FORGED, escaped]
    stream.append(*bodies)
    encoded = [{"body": base64.b64encode(body.encode()).decode()} for body in bodies]
    stream.post({"records": encoded}, **{"s2-format": "base64"})
    with append_session(stream) as session:
        session.send(frame(append_input(*(body.encode() for body in bodies))))
        session.end()
        assert [flag for flag, _ in session.frames()] == [0]

    found = [json.loads(body) for body in as_owner(gateway, stream).bodies()]
    messages = [record.get("data", record) for record in found]
    opened = [json.loads(one) if isinstance(one, str) else one for one in messages]
    assert opened == [{"kind": "message", "payload": {"text": "hi ü", "n": 1.5}}] * 12


def test_a_senders_other_records_stay_as_they_are(gateway: GatewayProcess) -> None:
    """SI2, SI3, SI4 in the stream store; and nobody looks at what the secret key sends."""
    bodies = [
        envelope('{"payload": {"actionSource": "button"}}'),
        '{ "data": "\\u00fc",  "id": "x" }',
        '{"data": {"actionSource": "webhook"',
        "actionSource webhook",
        "[" * 5000,
    ]
    theirs, ours = sender(gateway, "si2-raw"), mint(gateway, "si2-raw", "in")
    theirs.append(*bodies)
    ours.append(envelope(FORGED))

    assert as_owner(gateway, ours).bodies() == [*bodies, envelope(FORGED)]


@pytest.mark.parametrize(
    "body",
    [
        envelope('{"x": ' + "[" * 20_000 + "]" * 20_000 + ', "payload": {"actionSource": 1}}'),
        FORGED.replace("1.5", str([0] * 9).replace("0", "1e15")),
    ],
    ids=["deep", "growing"],
)
def test_what_cannot_be_looked_at_is_refused(gateway: GatewayProcess, body: str) -> None:
    """A message that only other parsers can read could hold anything: 422, in a session too."""
    stream = sender(gateway, "si-refused")
    answer = stream.append(body)
    with append_session(stream) as session:
        session.send(frame(append_input(body.encode())))
        status, document, _ = session.terminal()

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert (status, document["code"]) == (422, "invalid")


def test_a_message_that_is_too_deep_is_refused(gateway: GatewayProcess) -> None:
    """The append route says so in its own form."""
    body = '{"actionSource": ' + "[" * 20_000 + "]" * 20_000 + "}"
    answer = request(gateway, "POST", "deep", "in/append", content=body.encode())

    assert answer.status_code == 413
    assert answer.json() == {"ok": False, "error": "the message is nested too deeply"}


def test_a_senders_credential_ends_with_his_token(gateway: GatewayProcess) -> None:
    """Who may send for a minute gets no credential for a day."""
    sender(gateway, "short", life_s=60.0)
    with contextlib.closing(sqlite3.connect(gateway.data_dir / "platform.db")) as connection:
        (expires_at,) = connection.execute(
            "SELECT expires_at FROM tokens WHERE slot = 'session/short/main/in'"
        ).fetchone()

    assert expires_at <= time.time() + 60.0


def test_records_go_on_after_an_id(gateway: GatewayProcess) -> None:
    """The records route opens envelopes, shows control headers, and goes on after an event id."""
    stream = open_channel(gateway, "drain")
    stream.post({"records": [chunk(0), TURN_COMPLETE, {"body": "no envelope"}]})

    everything = request(gateway, "GET", "drain", "out/records").json()["records"]
    rest = request(gateway, "GET", "drain", "out/records?afterEventId=1").json()["records"]
    beyond = request(gateway, "GET", "drain", "out/records?afterEventId=99").json()
    nothing = request(gateway, "GET", "drain-never", "out/records").json()
    bad = request(gateway, "GET", "drain", "out/records?afterEventId=x")

    assert everything == [
        {"data": {"n": 0}, "id": "part-0", "seqNum": 0},
        {"data": "", "id": "", "seqNum": 1, "headers": TURN_COMPLETE["headers"]},
        {"data": "no envelope", "id": "", "seqNum": 2},
    ]
    assert rest == everything[2:]
    assert (beyond, nothing) == ({"records": []}, {"records": []})
    assert (bad.status_code, bad.json()["error"]) == (400, "Query Error")


def test_a_long_channel_is_drained_in_pages(gateway: GatewayProcess) -> None:
    """More than one read's worth comes at once; what is beyond 16 MiB comes after the last id."""
    stream = open_channel(gateway, "long")
    for _ in range(20):
        stream.post({"records": [{"body": "x" * 1000}] * 1000})

    seen: list[int] = []
    for _ in range(2):
        after = f"?afterEventId={seen[-1]}" if seen else ""
        page = request(gateway, "GET", "long", f"out/records{after}").json()["records"]
        seen += [r["seqNum"] for r in page]
        assert 1000 < len(page) < 20_000

    assert seen == list(range(20_000))


@pytest.mark.parametrize("session", ["チャット", " blank ", "a\tb", "€ 1", "UTF-8''x"])
def test_any_id_can_be_written_and_read(gateway: GatewayProcess, session: str) -> None:
    """An id that no header can hold names one stream all the same."""
    open_channel(gateway, session).post({"records": [chunk(7)]})

    assert data_of(records(subscribe(gateway, session))) == [7]
    assert gateway.stats()["records"][f"sessions/{session}/out"] == 1


def test_latest_starts_at_the_tail(gateway: GatewayProcess) -> None:
    """A subscriber that wants news alone gets what comes after it, unless it says a cursor."""
    open_channel(gateway, "latest").post({"records": [chunk(0), chunk(1)]})
    latest = {"X-Trigger-Stream-Start": "latest"}

    news = records(subscribe(gateway, "latest", **latest))
    cursor = records(subscribe(gateway, "latest", **latest, **{"Last-Event-ID": "0"}))

    assert (data_of(news), data_of(cursor)) == ([], [1])


def test_head_and_methods(gateway: GatewayProcess) -> None:
    """HEAD answers upstream's constant index; unknown methods, directions and paths are refused."""
    head = request(gateway, "HEAD", "m", "out")
    answers = [
        request(gateway, "DELETE", "m", "out"),
        request(gateway, "GET", "m", "in/append"),
        request(gateway, "POST", "m", "in/records", content=b"x"),
        request(gateway, "GET", "m", "sideways"),
        request(gateway, "GET", "m", "channels/a b/out"),
        request(gateway, "GET", "m", "in/append/more"),
        request(gateway, "GET", "", "in"),
    ]

    assert (head.status_code, head.headers["x-last-chunk-index"]) == (200, "0")
    assert [a.status_code for a in answers] == [405, 405, 405, 400, 400, 404, 404]
    assert [a.headers.get("allow") for a in answers[:3]] == ["PUT, GET, HEAD", "POST", "GET"]
    assert {a.json()["error"] for a in answers[3:5]} == {"Params Error"}


@pytest.mark.parametrize("text", ["abc", "0", "601", "1.5"])
def test_the_timeout_is_checked(gateway: GatewayProcess, text: str) -> None:
    """A Timeout-Seconds that is no number from 1 to 600 is 400."""
    answer = request(gateway, "GET", "s", "out", headers={"Timeout-Seconds": text})

    assert answer.status_code == 400


def test_a_name_too_long_for_the_store(gateway: GatewayProcess) -> None:
    """A session id that no stream name can hold is 400, not a credential for nothing."""
    answer = request(gateway, "PUT", "ü" * 256, "out")

    assert answer.status_code == 400


def test_faults_reach_the_channels(gateway: GatewayProcess) -> None:
    """A fault of the control plane hits channels as it hits run streams."""
    gateway.fault(kind="status", status=503, target="control-plane", count=2)

    answers = [
        request(gateway, "PUT", "faulty", "out"),
        request(gateway, "POST", "faulty", "in/append", content=b"x"),
        request(gateway, "PUT", "faulty", "out"),
    ]

    assert [a.status_code for a in answers] == [503, 503, 202]
