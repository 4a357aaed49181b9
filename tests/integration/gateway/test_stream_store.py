from __future__ import annotations

import base64
import json
import threading
import time

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import Stream, as_owner, mint

MIB = 1024 * 1024


def writer_and_owner(gateway: GatewayProcess, key: str) -> tuple[Stream, Stream]:
    writer = mint(gateway, key)
    return writer, as_owner(gateway, writer)


def test_an_ack_says_where_the_batch_lies(gateway: GatewayProcess) -> None:
    """Sequence numbers start at 0 and go on without gaps; end is one past the last record."""
    writer = mint(gateway, "ack")

    first, second = writer.append("a", "b").json(), writer.append("c").json()

    assert [first[k]["seq_num"] for k in ("start", "end", "tail")] == [0, 2, 2]
    assert [second[k]["seq_num"] for k in ("start", "end", "tail")] == [2, 3, 3]
    assert abs(first["start"]["timestamp"] - time.time() * 1000) < 60_000
    assert first["end"]["timestamp"] <= second["start"]["timestamp"]


def test_records_come_back_as_they_went_in(gateway: GatewayProcess) -> None:
    """Bodies and headers survive; empty ones are left out of the JSON."""
    writer, owner = writer_and_owner(gateway, "roundtrip")
    records = [
        {"body": "ünï\u0000\u2028🎈", "headers": [["a", "1"], ["a", "2"]]},
        {"headers": [["only", ""]]},
        {},
    ]
    writer.post({"records": records})

    found = owner.get(seq_num=0).json()["records"]

    assert [{k: v for k, v in r.items() if k in ("body", "headers")} for r in found] == records


def test_base64_carries_bytes(gateway: GatewayProcess) -> None:
    """With `s2-format: base64` bodies and headers are bytes, in both directions."""
    writer, owner = writer_and_owner(gateway, "base64")
    body = base64.b64encode(bytes(range(256))).decode()
    sent = {"body": body, "headers": [[base64.b64encode(b"n\xff").decode(), body]]}

    answer = writer.post({"records": [sent]}, **{"s2-format": "base64"})
    found = owner.get(seq_num=0, headers={"s2-format": "base64"}).json()["records"][0]
    broken = writer.post({"records": [{"body": "***"}]}, **{"s2-format": "base64"})

    assert answer.status_code == 200
    assert {k: found[k] for k in sent} == sent
    assert (broken.status_code, broken.json()["code"]) == (422, "invalid")


def test_timestamps_never_fall(gateway: GatewayProcess) -> None:
    """A client's timestamp counts, but is capped at arrival and raised to the one before it."""
    writer, owner = writer_and_owner(gateway, "time")
    far = int(time.time() * 1000) + 3_600_000
    stamps = [1000, 500, None, far]
    writer.post({"records": [{"body": "x", "timestamp": t} for t in stamps]})

    found = [r["timestamp"] for r in owner.get(seq_num=0).json()["records"]]

    assert found[:2] == [1000, 1000]
    assert found == sorted(found)
    assert found[3] < far


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        ({"records": []}, 422, "invalid"),
        ({"records": [{"body": "x"}] * 1001}, 422, "invalid"),
        ({"records": [{"body": "x" * (MIB - 7)}]}, 422, "invalid"),
        ({"records": [{"body": "x" * (MIB // 2)}] * 2}, 422, "invalid"),
        ({"records": [{"body": "x", "headers": [["", "what"]]}]}, 422, "invalid"),
        ({"records": [{"body": "x", "headers": [["", "fence"], ["a", "b"]]}]}, 422, "invalid"),
        ({"records": [{"body": "short", "headers": [["", "trim"]]}]}, 422, "invalid"),
        ({"records": [{"body": "x" * 37, "headers": [["", "fence"]]}]}, 422, "invalid"),
        ({"records": [{"body": "x"}], "fencing_token": "x" * 37}, 422, "invalid"),
        ({"records": [{"body": "x", "timestamp": -1}]}, 422, "invalid"),
        ({"records": [{"body": 1}]}, 400, "bad_json"),
        ({}, 400, "bad_json"),
        ([], 400, "bad_json"),
    ],
)
def test_a_bad_batch_is_refused_whole(
    gateway: GatewayProcess, document: object, status: int, code: str
) -> None:
    """Every broken rule has its status and code, and nothing of the batch is stored."""
    writer, owner = writer_and_owner(gateway, "bad")

    answer = writer.post(document)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert owner.bodies() == []


def test_the_largest_batches_pass(gateway: GatewayProcess) -> None:
    """1000 records pass, and one record whose metered size is exactly 1 MiB."""
    writer, owner = writer_and_owner(gateway, "largest")

    answers = [writer.append(*["x"] * 1000), writer.append("y" * (MIB - 8))]

    assert [a.status_code for a in answers] == [200, 200]
    assert len(owner.bodies()[-1]) == MIB - 8


def test_the_http_body_has_a_cap(gateway: GatewayProcess) -> None:
    """A body beyond 16 MiB is refused with an error that names the limit, announced or not."""
    writer = mint(gateway, "cap")
    headers = {**writer.headers, "content-type": "application/json"}
    body = b" " * (16 * MIB + 1)

    answers = [
        httpx.post(f"{writer.url}/records", headers=headers, content=content, timeout=30)
        for content in (body, iter([body[: 9 * MIB], body[9 * MIB :]]))
    ]

    assert [a.status_code for a in answers] == [413, 413]
    assert all(str(16 * MIB) in a.json()["message"] for a in answers)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/json", "content-encoding": "br"},
    ],
)
def test_what_is_not_spoken_is_refused(gateway: GatewayProcess, headers: dict[str, str]) -> None:
    """Other encodings are refused with 415, not misread."""
    writer = mint(gateway, "encodings")

    answer = httpx.post(
        f"{writer.url}/records", headers={**writer.headers, **headers}, content=b"{}"
    )

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_match_seq_num_guards_an_append(gateway: GatewayProcess) -> None:
    """A wrong expectation is 412 with the number in force; the right one passes."""
    writer = mint(gateway, "match")
    writer.append("a")

    answers = [writer.append("b", match_seq_num=n) for n in (0, 1)]

    assert [a.status_code for a in answers] == [412, 200]
    assert answers[0].json() == {"seq_num_mismatch": 1}


def test_fencing_comes_before_numbering(gateway: GatewayProcess) -> None:
    """A fence takes effect at once; a wrong token is 412 naming the current one, checked first."""
    writer, owner = writer_and_owner(gateway, "fence")
    fence = {"records": [{"body": "mine", "headers": [["", "fence"]]}], "fencing_token": ""}

    answers = [
        owner.post(fence),
        writer.append("x", fencing_token="other", match_seq_num=77),
        writer.append("x", fencing_token="mine"),
        writer.append("x"),
    ]

    assert [a.status_code for a in answers] == [200, 412, 200, 200]
    assert answers[1].json() == {"fencing_token_mismatch": "mine"}
    assert [r.get("headers") for r in owner.get(seq_num=0).json()["records"]] == [
        [["", "fence"]],
        None,
        None,
    ]


def test_trim_hides_what_is_below(gateway: GatewayProcess) -> None:
    """After a trim a read from 0 begins at the first record left; numbers go on."""
    writer, owner = writer_and_owner(gateway, "trim")
    writer.append("a", "b", "c")
    target = (2).to_bytes(8, "big").decode()

    trimmed = writer.post({"records": [{"body": target, "headers": [["", "trim"]]}]})
    found = owner.get(seq_num=0).json()["records"]

    assert trimmed.status_code == 200
    assert [r["seq_num"] for r in found] == [2, 3]
    assert writer.append("d").json()["start"]["seq_num"] == 4


def test_trim_is_capped_at_its_own_place(gateway: GatewayProcess) -> None:
    """A trim beyond itself leaves the trim record, which lies in the middle of its batch."""
    writer, owner = writer_and_owner(gateway, "trimcap")
    body = base64.b64encode((2**64 - 1).to_bytes(8, "big")).decode()
    trim = {"body": body, "headers": [["", base64.b64encode(b"trim").decode()]]}

    writer.post({"records": [{}, trim, {}]}, **{"s2-format": "base64"})

    assert [r["seq_num"] for r in owner.get(seq_num=0).json()["records"]] == [1, 2]


def test_the_tail(gateway: GatewayProcess) -> None:
    """An empty stream's tail is 0, 0; afterwards it is the next number and the last time."""
    writer, owner = writer_and_owner(gateway, "tail")

    empty = owner.get("/records/tail").json()
    ack = writer.append("a", "b").json()
    after = owner.get("/records/tail").json()

    assert empty == {"tail": {"seq_num": 0, "timestamp": 0}}
    assert after == {"tail": ack["tail"]}


def test_a_stream_nobody_minted_is_not_there(gateway: GatewayProcess) -> None:
    """Reading a missing stream is 404 `stream_not_found`; appending with the key creates it."""
    missing = Stream(
        f"{gateway.url}/v1/streams/runs%2Frun_1%2Fnever",
        {**gateway.headers, "s2-basin": "td-embedded"},
    )

    answers = [missing.get("/records/tail"), missing.get(seq_num=0)]
    created = missing.append("x")

    assert [(a.status_code, a.json()["code"]) for a in answers] == [(404, "stream_not_found")] * 2
    assert created.status_code == 200


def test_where_a_read_may_start(gateway: GatewayProcess) -> None:
    """By number, by time, by distance from the tail."""
    writer, owner = writer_and_owner(gateway, "starts")
    for stamp in (1000, 2000, 2000, 3000):
        writer.post({"records": [{"body": str(stamp), "timestamp": stamp}]})

    def numbers(**query: int) -> list[int]:
        return [r["seq_num"] for r in owner.get(**query).json()["records"]]

    assert numbers(seq_num=2) == [2, 3]
    assert numbers(timestamp=2000) == [1, 2, 3]
    assert numbers(timestamp=1001) == [1, 2, 3]
    assert numbers(tail_offset=1) == [3]
    assert numbers(tail_offset=99) == [0, 1, 2, 3]


def test_where_a_read_ends(gateway: GatewayProcess) -> None:
    """By count, by metered bytes, before a time; a read that spends its limit is 200."""
    writer, owner = writer_and_owner(gateway, "ends")
    for stamp in (1000, 2000, 3000):
        writer.post({"records": [{"body": "xx", "timestamp": stamp}]})

    def numbers(**query: int) -> list[int]:
        return [r["seq_num"] for r in owner.get(seq_num=0, **query).json()["records"]]

    assert numbers(count=2) == [0, 1]
    assert numbers(bytes=20) == [0, 1]
    assert numbers(bytes=19) == [0]
    assert numbers(bytes=9) == []
    assert numbers(count=0) == []
    assert numbers(until=3000) == [0, 1]


def test_a_read_takes_1000_records_or_a_mebibyte(gateway: GatewayProcess) -> None:
    """A unary read is bounded; the tail is named only when nothing is left."""
    writer, owner = writer_and_owner(gateway, "bounded")
    writer.append(*["s"] * 1000)
    for _ in range(3):
        writer.append("x" * (MIB // 2))

    first = owner.get(seq_num=0, count=5000).json()
    second = owner.get(seq_num=1000).json()
    last = owner.get(seq_num=1001).json()

    assert [len(b["records"]) for b in (first, second, last)] == [1000, 1, 1]
    assert "tail" not in first
    assert owner.get(seq_num=1002).json()["tail"]["seq_num"] == 1003


def test_beyond_the_tail_is_416(gateway: GatewayProcess) -> None:
    """A read at or beyond the tail that may not wait is 416 with the tail, clamped or not."""
    writer, owner = writer_and_owner(gateway, "beyond")
    tail = writer.append("a").json()["tail"]

    refused = [
        owner.get(seq_num=1),
        owner.get(seq_num=2, wait=1),
        owner.get(seq_num=2**64 - 1),
        owner.get(seq_num=9, clamp="true"),
        owner.get(),
    ]
    waited = owner.get(seq_num=9, clamp="true", wait=1)

    assert [(a.status_code, a.json()) for a in refused] == [(416, {"tail": tail})] * 5
    assert (waited.status_code, waited.json()) == (200, {"records": [], "tail": tail})


def test_a_fully_trimmed_stream_is_at_its_tail(gateway: GatewayProcess) -> None:
    """A read from 0 below the trim point finds the trim record alone."""
    writer, owner = writer_and_owner(gateway, "trimmed")
    body = base64.b64encode((9).to_bytes(8, "big")).decode()
    trim = {"body": body, "headers": [["", base64.b64encode(b"trim").decode()]]}
    writer.append("a", "b")
    writer.post({"records": [trim]}, **{"s2-format": "base64"})

    assert [r["seq_num"] for r in owner.get(seq_num=0).json()["records"]] == [2]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"seq_num": "x"}, 400, "bad_query"),
        ({"seq_num": "-1"}, 400, "bad_query"),
        ({"seq_num": str(2**64)}, 400, "bad_query"),
        ({"seq_num": "0", "clamp": "yes"}, 400, "bad_query"),
        ({"seq_num": "0", "wait": "1.5"}, 400, "bad_query"),
        ({"seq_num": "0", "tail_offset": "0"}, 422, "invalid"),
        ({"timestamp": "5", "until": "5"}, 422, "invalid"),
    ],
)
def test_a_bad_query_is_refused(
    gateway: GatewayProcess, query: dict[str, str], status: int, code: str
) -> None:
    """Each query parameter is checked, with S2's status and code."""
    _, owner = writer_and_owner(gateway, "query")

    answer = owner.get(**query)

    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_bad_headers_are_refused(gateway: GatewayProcess) -> None:
    """The basin must be named and be ours; the format must be one of two."""
    writer, owner = writer_and_owner(gateway, "headers")
    writer.append("x")
    no_basin = {k: v for k, v in owner.headers.items() if k != "s2-basin"}

    answers = [
        Stream(owner.url, no_basin).get(seq_num=0),
        Stream(owner.url, {**owner.headers, "s2-basin": "other"}).get(seq_num=0),
        owner.get(seq_num=0, headers={"s2-format": "hex"}),
    ]

    assert [(a.status_code, a.json()["code"]) for a in answers] == [
        (400, "bad_header"),
        (404, "basin_not_found"),
        (400, "bad_header"),
    ]


def test_a_long_poll_returns_with_the_first_append(gateway: GatewayProcess) -> None:
    """A waiting read is answered by an append, long before its wait is over."""
    writer, owner = writer_and_owner(gateway, "poll")
    answers: list[httpx.Response] = []
    poll = threading.Thread(target=lambda: answers.append(owner.get(seq_num=0, wait=60)))
    poll.start()

    writer.append("news")
    poll.join(25)

    assert [r["body"] for r in answers[0].json()["records"]] == ["news"]


def test_unknown_routes_and_methods(gateway: GatewayProcess) -> None:
    """What is not part of the API is a bare 404 or 405."""
    _, owner = writer_and_owner(gateway, "routes")

    answers = [
        httpx.get(f"{gateway.url}/v1/nothing", headers=owner.headers),
        httpx.get(f"{owner.url}/nothing", headers=owner.headers),
        httpx.delete(f"{owner.url}/records", headers=owner.headers),
        httpx.post(f"{owner.url}/records/tail", headers=owner.headers),
    ]

    assert [(a.status_code, a.content) for a in answers] == [
        (404, b""),
        (404, b""),
        (405, b""),
        (405, b""),
    ]


def test_eight_clients_interleave_without_loss(gateway: GatewayProcess) -> None:
    """Eight writers of one stream get numbers without gaps; each one's records keep their order."""
    writers = [mint(gateway, "interleaved") for _ in range(8)]
    spans: list[tuple[int, int]] = []

    def write(number: int) -> None:
        headers = writers[number].headers
        with httpx.Client(headers=headers, timeout=30) as client:
            for batch in range(20):
                records = [{"body": json.dumps([number, batch, n])} for n in range(5)]
                answer = client.post(f"{writers[number].url}/records", json={"records": records})
                ack = answer.json()
                spans.append((ack["start"]["seq_num"], ack["end"]["seq_num"]))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    found = [json.loads(body) for body in as_owner(gateway, writers[0]).bodies()]
    assert sorted(spans) == [(n, n + 5) for n in range(0, 800, 5)]
    assert len(found) == 800
    for number in range(8):
        assert [r[1:] for r in found if r[0] == number] == [
            [b, n] for b in range(20) for n in range(5)
        ]


def test_a_reader_that_hangs_up_leaves_the_stream_alone(gateway: GatewayProcess) -> None:
    """A client that hangs up in a long poll costs the stream nothing."""
    writer, owner = writer_and_owner(gateway, "gone")
    with pytest.raises(httpx.TimeoutException):
        httpx.get(f"{owner.url}/records?seq_num=0&wait=30", headers=owner.headers, timeout=0.2)

    writer.append("still here")

    assert owner.bodies() == ["still here"]
