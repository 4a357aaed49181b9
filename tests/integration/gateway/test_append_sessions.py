"""s2s sessions, frame by frame, over real HTTP/2."""

from __future__ import annotations

import gzip
import itertools

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import as_owner, mint
from tests.integration.gateway.h2_session import (
    ack_end,
    append_input,
    append_session,
    field,
    frame,
    read_session,
)

MIB = 1024 * 1024


def test_acknowledgements_come_while_the_body_is_open(gateway: GatewayProcess) -> None:
    """The head and each acknowledgement are sent before the client has ended its body."""
    with append_session(mint(gateway, "open")) as session:
        assert session.await_head() == 200
        ends = []
        for bodies in ([b"a"], [b"b", b"c"]):
            session.send(frame(append_input(*bodies)))
            flag, body = next(session.frames())
            assert flag == 0
            ends.append(ack_end(body))
        session.end()

        assert ends == [1, 3]
        assert list(session.frames()) == []


def test_frames_may_be_cut_anywhere(gateway: GatewayProcess) -> None:
    """Frames arrive whole, byte by byte, or several at once; each is one batch in order."""
    stream = mint(gateway, "cuts")
    data = b"".join(frame(append_input(b"%d" % i)) for i in range(20))
    with append_session(stream) as session:
        session.send_each([data[i : i + 1] for i in range(len(data) // 2)])
        session.send(data[len(data) // 2 :])
        session.end()

        assert [ack_end(body) for _, body in session.frames()] == list(range(1, 21))

    assert as_owner(gateway, stream).bodies() == [str(i) for i in range(20)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\0\0\0", "bad_frame"),  # no flag
        (b"\x20\0\1\0", "bad_frame"),  # 2 MiB and 1 byte
        (frame(b"{}", flag=0x80), "bad_frame"),  # terminal
        (frame(b"x", flag=0x60), "bad_frame"),  # compressed, nobody knows how
        (frame(b"x", flag=0x20), "bad_frame"),  # not zstd
        (frame(gzip.compress(b"x", mtime=0)[:-4], flag=0x40), "bad_frame"),  # cut gzip
        (frame(gzip.compress(bytes(3 * MIB), mtime=0), flag=0x40), "bad_frame"),  # a bomb
        (frame(b"\xff" * 12), "bad_proto"),
        (frame(b"\x0a\x7fx"), "bad_proto"),  # a record longer than its message
        (frame(b""), "invalid"),  # no records
        (frame(append_input(*[b""] * 1001)), "invalid"),
        (frame(append_input(b"x" * MIB)), "invalid"),
        (frame(field(1, field(2, field(2, b"x") + b"") + field(2, field(1, b"n")))), "invalid"),
    ],
)
def test_a_bad_frame_ends_the_session(gateway: GatewayProcess, data: bytes, code: str) -> None:
    """What came before is acknowledged, then the error; nothing after it is stored."""
    key = f"bad{abs(hash(data))}"
    stream = mint(gateway, key)
    with append_session(stream) as session:
        session.send(frame(append_input(b"good")) + data + frame(append_input(b"after")))

        status, document, count = session.terminal()

    assert (status, document["code"], count) == (422 if code == "invalid" else 400, code, 1)
    assert as_owner(gateway, stream).bodies() == ["good"]


def test_a_body_cut_in_the_middle_of_a_frame(gateway: GatewayProcess) -> None:
    """Half a frame at the end of the body is an error, and stores nothing."""
    stream = mint(gateway, "cut")
    whole = frame(append_input(b"x" * 100))
    with append_session(stream) as session:
        session.send(whole + whole[:50])
        session.end()

        status, document, count = session.terminal()

    assert (status, document["code"], count) == (400, "bad_frame", 1)
    assert len(as_owner(gateway, stream).bodies()) == 1


def test_a_connection_cut_in_the_middle_of_a_frame(gateway: GatewayProcess) -> None:
    """What was whole is stored, the half frame is not, and the gateway goes on."""
    stream = mint(gateway, "lost")
    whole = frame(append_input(b"x"))
    with append_session(stream) as session:
        session.send(whole)
        next(session.frames())
        session.send(whole[:5])

    assert stream.append("y").json()["start"]["seq_num"] == 1


def test_nothing_follows_a_batch_that_fails(gateway: GatewayProcess) -> None:
    """Batches sent behind one whose condition fails are not stored, however fast they came."""
    stream = mint(gateway, "poison")
    inputs = [append_input(b"%d" % i, match_seq_num=i) for i in range(50)]
    inputs[20] = append_input(b"20", match_seq_num=999)
    with append_session(stream) as session:
        session.send(b"".join(map(frame, inputs)))

        status, document, count = session.terminal()

    assert (status, document, count) == (412, {"seq_num_mismatch": 20}, 20)
    assert as_owner(gateway, stream).bodies() == [str(i) for i in range(20)]


def test_thousands_of_small_frames_on_their_way(gateway: GatewayProcess) -> None:
    """A client that waits for no acknowledgement is held back, not thrown out."""
    stream = mint(gateway, "flood")
    count = 5000
    with append_session(stream) as session:
        session.send_each([frame(append_input(b"%d" % i)) for i in range(count)])
        session.end()

        ends = [ack_end(body) for _, body in session.frames()]

    assert ends == list(range(1, count + 1))


def test_large_batches_fill_a_session(gateway: GatewayProcess) -> None:
    """Twenty batches of a MiB pass, more than any window or limit on what is unacknowledged."""
    with append_session(mint(gateway, "large")) as session:
        session.send(frame(append_input(b"x" * (MIB - 8))) * 20)
        session.end()

        assert [ack_end(body) for _, body in session.frames()] == list(range(1, 21))


@pytest.mark.parametrize("kind", ["expire-tokens", "revoke-tokens"])
def test_an_idle_session_ends_with_its_token(gateway: GatewayProcess, kind: str) -> None:
    """A session that nobody writes to is ended with 401 at the moment its token ends."""
    with append_session(mint(gateway, f"idle-{kind}")) as session:
        session.send(frame(append_input(b"x")))
        next(session.frames())
        gateway.fault(kind=kind)

        status, document, _ = session.terminal()

    assert (status, document["code"]) == (401, "authn")


def test_an_event_stream_ends_with_its_token(gateway: GatewayProcess) -> None:
    """Server-sent events of a token that is revoked end with an error event."""
    stream = mint(gateway, "events")
    stream.append("x")
    issued = httpx.post(
        f"{gateway.url}/v1/access-tokens",
        headers=gateway.headers,
        json={
            "id": "reader",
            "scope": {"basins": {"prefix": ""}, "streams": {"prefix": ""}, "ops": ["read"]},
        },
    ).json()["access_token"]
    headers = {
        **stream.headers,
        "authorization": f"Bearer {issued}",
        "accept": "text/event-stream",
    }
    with httpx.stream(
        "GET", f"{stream.url}/records?seq_num=0", headers=headers, timeout=30
    ) as answer:
        lines = answer.iter_lines()
        names = [next(line for line in lines if line.startswith("event:"))]
        httpx.delete(f"{gateway.url}/v1/access-tokens/reader", headers=gateway.headers)
        rest = list(lines)

    assert names == ["event: batch"]
    assert rest[-3] == "event: error"
    assert '"authn"' in rest[-2]


def test_a_refusal_comes_before_the_session(gateway: GatewayProcess) -> None:
    """A session that may not be opened is answered like a single request."""
    stream = mint(gateway, "closed")
    headers = {**stream.headers, "content-type": "s2s/proto"}
    outcomes = []
    for more, method in (
        ({"authorization": "Bearer nothing"}, httpx.post),
        ({"s2-basin": "other-basin"}, httpx.post),
        ({}, httpx.get),
    ):
        answer = method(f"{stream.url}/records", headers={**headers, **more}, timeout=30)
        outcomes.append((answer.status_code, answer.json()["code"]))

    assert outcomes == [
        (401, "authn"),
        (403, "permission_denied"),
        (403, "permission_denied"),
    ]


def test_a_stopping_gateway_acknowledges_what_it_took(own_gateway: GatewayProcess) -> None:
    """A stop acknowledges every batch taken and says 503 `server_draining` in each session."""
    stream = mint(own_gateway, "drain")
    owner = as_owner(own_gateway, stream)
    with append_session(stream) as writer, read_session(owner, "tail_offset=0") as reader:
        writer.send(frame(append_input(b"x")))
        next(writer.frames())
        next(itertools.islice(reader.frames(), 1))
        assert own_gateway.stop() == 0
        ends = [writer.terminal(), reader.terminal()]

    assert [(status, document["code"]) for status, document, _ in ends] == [
        (503, "server_draining")
    ] * 2


def test_a_read_session_beats_while_nothing_comes(gateway: GatewayProcess) -> None:
    """At the tail a read session says where it is, then sends what is appended."""
    stream = mint(gateway, "beat")
    with read_session(as_owner(gateway, stream), "seq_num=0") as session:
        _, first = next(session.frames())
        stream.append("news")
        _, second = next(session.frames())

    assert first == field(2, b"")  # no records, and a tail of zeros
    assert b"news" in second
