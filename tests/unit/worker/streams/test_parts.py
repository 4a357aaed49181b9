from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from httpx_sse import ServerSentEvent

from td_worker.errors import ControlPlaneRefusedError, ControlPlaneUnreachableError
from td_worker.streams.parts import Part, parse_event
from td_worker.streams.seen import Seen


def data_record(seq: int, chunk: Any, envelope_id: str | None = None) -> dict[str, Any]:
    body = json.dumps({"data": chunk, "id": envelope_id or f"w-{seq}"})

    return {"seq_num": seq, "timestamp": 1000 + seq, "body": body}


def batch(*records: dict[str, Any], event_id: str = "9,1,1") -> ServerSentEvent:
    data = json.dumps({"records": list(records), "tail": {"seq_num": 99, "timestamp": 0}})

    return ServerSentEvent(event="batch", data=data, id=event_id)


def parse(event: ServerSentEvent, seen: Seen | None = None) -> tuple[list[Part], str | None]:
    return parse_event(event, version="v2", cursor=None, seen=seen or Seen())


@pytest.mark.conformance("SB1")
def test_a_data_record_is_a_part_with_its_sequence_number():
    """SB1: one data record gives its seq as id, its chunk, its time and no headers."""
    assert parse(batch(data_record(5, {"a": 1}))) == (
        [Part(id="5", chunk={"a": 1}, timestamp=1005, headers=(), envelope_id="w-5")],
        "5",
    )


@pytest.mark.conformance("SB2")
def test_commands_of_s2_are_skipped():
    """SB2: a trim command between two data records gives no part, yet moves the cursor."""
    trim = {"seq_num": 6, "body": "AAAAAAAAAAE=", "headers": [["", "trim"]]}
    parts, cursor = parse(
        batch(data_record(5, "a"), trim, data_record(7, "b"), trim | {"seq_num": 8})
    )

    assert [part.id for part in parts] == ["5", "7"]
    assert cursor == "8"


@pytest.mark.conformance("SB3")
def test_a_control_record_keeps_its_headers_and_has_no_chunk():
    """SB3: a control record is one part without chunk, headers intact."""
    headers = [["trigger-control", "turn-complete"], ["public-access-token", "jwt"]]
    parts, _ = parse(batch({"seq_num": 3, "body": "", "headers": headers}))

    assert [part.has_chunk for part in parts] == [False]
    assert parts[0].headers == (
        ("trigger-control", "turn-complete"),
        ("public-access-token", "jwt"),
    )


@pytest.mark.conformance("SB4")
def test_a_body_that_is_no_json_is_a_part_without_chunk():
    """SB4: a malformed record gives no chunk, the next is fine, the cursor moves."""
    parts, cursor = parse(batch({"seq_num": 1, "body": "not json at all"}, data_record(2, "fine")))

    assert [part.has_chunk for part in parts] == [False, True]
    assert parts[1].chunk == "fine"
    assert cursor == "2"


def test_null_is_a_chunk():
    """A written None is read as None, not left out."""
    parts, _ = parse(batch(data_record(1, None)))

    assert parts[0].has_chunk
    assert parts[0].chunk is None


def test_a_record_sent_twice_is_read_once():
    """The envelope id hides the copy, and the cursor moves past it."""
    seen = Seen()
    first, _ = parse(batch(data_record(1, "x", "w-1")), seen)
    again, cursor = parse(batch(data_record(2, "x", "w-1")), seen)

    assert [part.chunk for part in first] == ["x"]
    assert again == []
    assert cursor == "2"


@pytest.mark.parametrize(
    "event",
    [
        ServerSentEvent(event="ping", data='{"timestamp":1}'),
        ServerSentEvent(data="[DONE]"),
        batch(),
    ],
)
def test_other_events_say_nothing(event):
    """Pings, the closing event and empty batches give no part and leave the cursor."""
    assert parse_event(event, version="v2", cursor="4", seen=Seen()) == ([], "4")


def test_a_broken_off_stream_is_not_its_end():
    """S2's error event asks for a new connection, since records would silently be missing."""
    with pytest.raises(ControlPlaneUnreachableError, match="broke off"):
        parse(ServerSentEvent(event="error", data="server_draining"))


def test_a_batch_that_is_none_is_refused():
    """What is not S2's batch ends the read with an error that says so."""
    with pytest.raises(ControlPlaneRefusedError, match="not what S2 would send"):
        parse(ServerSentEvent(event="batch", data='{"records":[{"seq_num":"x"}]}'))


@pytest.mark.parametrize(("data", "chunk"), [('{"a":1}', {"a": 1}), ("plain text", "plain text")])
def test_a_v1_stream_is_read_event_by_event(data, chunk):
    """On v1 streams the event's id is the cursor and its data the chunk, JSON or text."""
    event = ServerSentEvent(data=data, id="1700000000000-3")
    parts, cursor = parse_event(event, version="v1", cursor=None, seen=Seen())

    assert parts == [Part(id="1700000000000-3", chunk=chunk, timestamp=1700000000000)]
    assert cursor == "1700000000000-3"


def test_a_string_in_data_stays_a_string():
    """A record appended through the server holds its JSON as text, which reads leave raw."""
    parts, _ = parse(batch(data_record(0, '{"n":1}')))

    assert parts[0].chunk == '{"n":1}'


def test_part_without_chunk_is_unset():
    """Absent data is told apart from null."""
    assert Part(id="1").chunk is msgspec.UNSET
