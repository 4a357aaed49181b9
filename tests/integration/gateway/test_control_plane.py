from __future__ import annotations

import socket

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import as_owner, mint, put, read_events

STREAMS = "/realtime/v1/streams"


def request(gateway: GatewayProcess, method: str, path: str, **more: object) -> httpx.Response:
    headers = {**gateway.headers, **more.pop("headers", {})}  # type: ignore[dict-item]
    return httpx.request(
        method,
        gateway.url + STREAMS + path,
        headers=headers,
        timeout=30,
        **more,  # type: ignore[arg-type]
    )


def test_put_hands_out_all_six_headers(gateway: GatewayProcess) -> None:
    """A PUT answers 202 with version v2 and everything a writer needs, in upstream's headers."""
    answer = put(gateway, "out")

    assert (answer.status_code, answer.json()) == (202, {"version": "v2"})
    given = {k: v for k, v in answer.headers.items() if k.startswith("x-s2-")}
    token = given.pop("x-s2-access-token")
    assert len(token) > 40
    assert given == {
        "x-s2-basin": "td-embedded",
        "x-s2-stream-name": "runs/run_1/out",
        "x-s2-flush-interval-ms": "100",
        "x-s2-max-retries": "10",
        "x-s2-endpoint": f"{gateway.url}/v1",
    }


def test_every_put_mints_a_fresh_token(gateway: GatewayProcess) -> None:
    """Two PUTs for one slot give two tokens, and both work."""
    first, second = mint(gateway, "fresh"), mint(gateway, "fresh")

    assert first.token != second.token
    assert [s.append("x").status_code for s in (first, second)] == [200, 200]


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
def test_an_unknown_run_is_refused_in_plain_text(gateway: GatewayProcess, method: str) -> None:
    """A run that runs.db does not hold is answered 404, as text."""
    answer = request(gateway, method, "/run_none/self/out")

    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")
    if method == "PUT":
        assert answer.text == "Run not found"


def test_an_append_to_an_unknown_run_is_refused(gateway: GatewayProcess) -> None:
    """The append route answers 404 with upstream's text for an unknown run."""
    answer = request(gateway, "POST", "/run_none/self/out/append", content=b"x")

    assert (answer.status_code, answer.text) == (404, "Run not found")


def test_a_key_below_an_empty_segment_is_no_route(gateway: GatewayProcess) -> None:
    """An empty stream key is answered 404 and told not to retry."""
    answer = request(gateway, "PUT", "/run_1/self/")

    assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "status", ["COMPLETED", "FAILED", "CRASHED", "TIMED_OUT", "CANCELED", "EXPIRED"]
)
def test_a_finished_run_takes_no_more(gateway: GatewayProcess, status: str) -> None:
    """PUT and append for a finished run are answered 400 with upstream's texts."""
    gateway.add_run("run_done", status)

    answers = [
        put(gateway, "out", run="run_done"),
        request(gateway, "POST", "/run_done/self/out/append", content=b"x"),
    ]

    assert [(a.status_code, a.text) for a in answers] == [
        (400, "Cannot initialize a realtime stream on a completed run"),
        (400, "Cannot append to a realtime stream on a completed run"),
    ]


@pytest.mark.parametrize("status", ["QUEUED", "DELAYED", "EXECUTING", "WAITING", "RETRYING"])
def test_an_unfinished_run_takes_streams(gateway: GatewayProcess, status: str) -> None:
    """Every status that is not final lets a PUT through."""
    gateway.add_run("run_open", status)

    assert put(gateway, "out", run="run_open").status_code == 202


def test_parent_and_root_resolve_to_their_runs(gateway: GatewayProcess) -> None:
    """A target names another run's stream; without such a run it is `Target not found`."""
    gateway.add_run("run_root")
    gateway.add_run("run_parent")
    gateway.add_run("run_child", parent_id="run_parent", root_id="run_root")

    targets = ("self", "parent", "root")
    names = [
        put(gateway, "out", run="run_child", target=target).headers["x-s2-stream-name"]
        for target in targets
    ]
    missing = put(gateway, "out", run="run_root", target="parent")
    unknown = put(gateway, "out", run="run_root", target="uncle")

    assert names == ["runs/run_child/out", "runs/run_parent/out", "runs/run_root/out"]
    assert (missing.status_code, missing.text) == (404, "Target not found")
    assert (unknown.status_code, unknown.json()["error"]) == (400, "Params Error")


def test_a_key_may_hold_anything(gateway: GatewayProcess) -> None:
    """Slashes, spaces, percent signs and `append` in a key name one stream, not a route."""
    for key in ("a/b c%20ü", "x/append", "records/tail", "?a=b#c"):
        stream = mint(gateway, key)
        assert stream.append(key).status_code == 200
        owner = as_owner(gateway, stream)
        assert owner.bodies() == [key]
        assert gateway.stats()["records"][f"run_1/{key}"] == 1


def test_a_server_side_append_stores_a_string(gateway: GatewayProcess) -> None:
    """POST append stores the raw body as a JSON string beside a part id of seven characters."""
    answer = request(gateway, "POST", "/run_1/self/raw/append", content=b'{"a": 1}')
    named = request(
        gateway, "POST", "/run_1/self/raw/append", content=b"z", headers={"X-Part-Id": "part"}
    )

    assert [(a.status_code, a.json()) for a in (answer, named)] == [(200, {"ok": True})] * 2
    first, second = as_owner(gateway, mint(gateway, "raw")).bodies()
    assert first.startswith('{"data":"{\\"a\\": 1}","id":"')
    assert len(first) == len('{"data":"{\\"a\\": 1}","id":""}') + 7
    assert second == '{"data":"z","id":"part"}'


def test_an_append_without_a_length_is_refused(gateway: GatewayProcess) -> None:
    """The append route wants Content-Length: a chunked body is 413."""
    answer = request(gateway, "POST", "/run_1/self/chunked/append", content=iter([b"x"]))

    assert (answer.status_code, answer.json()) == (413, {"error": "Request body too large"})


def test_the_append_cap_is_512_kib(gateway: GatewayProcess) -> None:
    """512 KiB pass, one byte more is 413, and so is what would not fit a record."""
    cap = 512 * 1024
    sizes = [b"x" * cap, b"x" * (cap + 1), b"x" * (17 * 1024 * 1024), b"\x01" * cap]

    answers = [
        request(gateway, "POST", "/run_1/self/big/append", content=content) for content in sizes
    ]

    assert [a.status_code for a in answers] == [200, 413, 413, 413]
    assert answers[1].json() == {"error": "Request body too large"}
    assert answers[3].json()["ok"] is False


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_half_a_body_is_not_stored(gateway: GatewayProcess, how: int) -> None:
    """A client that dies while it sends leaves nothing behind, not a part of its record."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(
            f"POST /realtime/v1/streams/run_1/self/half{how}/append HTTP/1.1\r\n"
            f"host: 127.0.0.1:{gateway.port}\r\n"
            f"authorization: Bearer {gateway.secret_key}\r\n"
            "content-length: 100\r\n\r\nonly this".encode()
        )
        connection.shutdown(how)
        head = connection.recv(1000)
    whole = request(gateway, "POST", f"/run_1/self/half{how}/append", content=b"whole")

    assert head == b"" or head.split(b" ")[1] == b"499"
    assert whole.status_code == 200
    (body,) = as_owner(gateway, mint(gateway, f"half{how}")).bodies()
    assert "whole" in body


def test_head_tells_the_last_chunk(gateway: GatewayProcess) -> None:
    """HEAD answers the last index: -1 for a stream nobody has written to."""
    before = request(gateway, "HEAD", "/run_1/self/probe")
    mint(gateway, "probe").append("a", "b", "c")
    after = request(gateway, "HEAD", "/run_1/self/probe")

    assert [(a.status_code, a.headers["x-last-chunk-index"]) for a in (before, after)] == [
        (200, "-1"),
        (200, "2"),
    ]


def test_methods_that_do_not_exist(gateway: GatewayProcess) -> None:
    """GET on the write path is 405 in text, other methods 405 in JSON, v1 ingest 400."""
    answers = [
        request(gateway, "GET", "/run_1/self/m"),
        request(gateway, "DELETE", "/run_1/self/m"),
        request(gateway, "GET", "/run_1/self/m/append"),
        request(gateway, "POST", "/run_1/m"),
        request(gateway, "POST", "/run_1/self/m", content=b"x"),
    ]

    assert [a.status_code for a in answers] == [405, 405, 405, 405, 400]
    assert answers[0].headers["content-type"].startswith("text/plain")
    assert [a.json()["error"] for a in answers[1:4]] == ["Method not allowed"] * 3
    assert [a.headers["allow"] for a in answers[1:4]] == ["PUT, HEAD, POST", "POST", "GET"]
    assert "v2" in answers[4].json()["error"]


def test_subscribe_passes_the_stream_on(gateway: GatewayProcess) -> None:
    """GET sends S2's own events, marks them v2, and ends when nothing came for the time asked."""
    mint(gateway, "read").append("a", "b")

    answer = request(gateway, "GET", "/run_1/read", headers={"Timeout-Seconds": "1"})
    found = read_events(
        f"{gateway.url}{STREAMS}/run_1/read", {**gateway.headers, "Timeout-Seconds": "1"}
    )

    assert answer.headers["x-stream-version"] == "v2"
    assert [e.name for e in found] == ["batch", "ping", ""]
    assert [r["body"] for r in found[0].data["records"]] == ["a", "b"]
    assert found[-1].data == "[DONE]"


@pytest.mark.parametrize(
    ("cursor", "expected"),
    [
        ("0", ["b", "c"]),
        ("1-7", ["c"]),
        ("99", []),
        ("1,2,22", ["a", "b", "c"]),
        ("x", ["a", "b", "c"]),
        ("", ["a", "b", "c"]),
    ],
)
def test_subscribe_goes_on_after_the_cursor(
    gateway: GatewayProcess, cursor: str, expected: list[str]
) -> None:
    """The digits before a dash are the last record seen; what does not parse starts over."""
    key = f"cursor{cursor}"
    mint(gateway, key).append("a", "b", "c")

    found = read_events(
        f"{gateway.url}{STREAMS}/run_1/{httpx.URL(key)}".replace(",", "%2C"),
        {**gateway.headers, "Timeout-Seconds": "1", "Last-Event-ID": cursor},
    )

    bodies = [r["body"] for e in found if e.name == "batch" for r in e.data["records"]]
    assert bodies == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "Invalid timeout seconds"),
        ("1.5", "Invalid timeout seconds"),
        ("0", "Timeout seconds must be greater than 0"),
        ("-3", "Timeout seconds must be greater than 0"),
        ("601", "Timeout seconds must be less than 600"),
    ],
)
def test_subscribe_checks_the_timeout(gateway: GatewayProcess, text: str, message: str) -> None:
    """A Timeout-Seconds that is no number from 1 to 600 is 400 with upstream's text."""
    answer = request(gateway, "GET", "/run_1/read", headers={"Timeout-Seconds": text})

    assert (answer.status_code, answer.text) == (400, message)


def test_subscribe_to_an_unknown_run(gateway: GatewayProcess) -> None:
    """The loader's 404 is JSON and suppresses retries."""
    answer = request(gateway, "GET", "/run_none/read")

    assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})
    assert answer.headers["x-should-retry"] == "false"


def test_a_finished_run_can_still_be_read(gateway: GatewayProcess) -> None:
    """Reading needs a known run, not a running one."""
    gateway.add_run("run_past")
    mint(gateway, "out", run="run_past").append("kept")
    gateway.add_run("run_past", "COMPLETED")

    found = read_events(
        f"{gateway.url}{STREAMS}/run_past/out", {**gateway.headers, "Timeout-Seconds": "1"}
    )

    assert found[0].data["records"][0]["body"] == "kept"


def test_every_put_is_counted(gateway: GatewayProcess) -> None:
    """PUTs count per slot, refused ones too, and each has a start, an end and a status."""
    before = gateway.stats()["puts"].get("run/run_1/counted%2Fkey", 0)
    mint(gateway, "counted/key")
    put(gateway, "lost", run="run_none")
    stats = gateway.stats()

    assert (before, stats["puts"]["run/run_1/counted%2Fkey"]) == (0, 1)
    assert stats["puts"]["run/run_none/lost"] == 1
    last = stats["mints"][-1]
    assert (last["slot"], last["status"], last["aborted"]) == ("run/run_none/lost", 404, False)
    assert last["started_at"] <= last["finished_at"]
