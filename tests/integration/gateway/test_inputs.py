"""Input streams, waitpoints, and who may read a run's streams."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import mint, read_events
from tests.integration.gateway.public_tokens import bearer

STREAMS = "/realtime/v1/streams"


def request(gateway: GatewayProcess, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {**gateway.headers, **more.pop("headers", {})}
    return httpx.request(method, gateway.url + path, headers=headers, timeout=30, **more)


def send(gateway: GatewayProcess, stream: str, data: Any, **more: Any) -> httpx.Response:
    return request(gateway, "POST", f"{STREAMS}/run_1/input/{stream}", json={"data": data}, **more)


def wait(gateway: GatewayProcess, stream: str, **more: Any) -> dict[str, Any]:
    """Register a wait on an input stream of `run_1`."""
    answer = request(
        gateway,
        "POST",
        "/api/v1/runs/run_1/input-streams/wait",
        json={"streamId": stream, **more},
    )
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def waitpoint(gateway: GatewayProcess, waitpoint_id: str) -> dict[str, Any]:
    answer = request(gateway, "GET", f"/api/v1/waitpoints/tokens/{waitpoint_id}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


# ---------------------------------------------------------------- input streams


@pytest.mark.parametrize("data", [{"a": [1, "ü"]}, "text", 0, None, False, ["x"] * 3])
def test_what_is_sent_arrives(gateway: GatewayProcess, data: Any) -> None:
    """A record's data is the JSON of what was sent, its id `inp_` and twelve hex digits."""
    stream = f"arrives{abs(hash(str(data)))}"
    answer = send(gateway, stream, data)
    events = read_events(
        f"{gateway.url}{STREAMS}/run_1/input/{stream}", {**gateway.headers, "Timeout-Seconds": "1"}
    )

    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    (record,) = events[0].data["records"]
    envelope = json.loads(record["body"])
    assert json.loads(envelope["data"]) == data
    assert envelope["id"][:4] == "inp_"
    assert len(bytes.fromhex(envelope["id"][4:])) == 6
    assert gateway.stats()["records"][f"run_1/$trigger.input:{stream}"] == 1


def test_who_may_send(gateway: GatewayProcess) -> None:
    """A page sends with a write scope for inputs of this run, and with no other."""
    scopes = ["write:inputStreams:run_1", "write:inputStreams", "write:inputStreams:run_2"]
    scopes += ["read:runs:run_1", "write:sessions:run_1"]

    answers = [
        send(gateway, "who", 1, headers=bearer(gateway.secret_key, scope)) for scope in scopes
    ]

    assert [a.status_code for a in answers] == [200, 200, 403, 403, 403]


def test_sends_that_are_refused(gateway: GatewayProcess) -> None:
    """Unknown and finished runs, bodies without data and over 1 MiB have upstream's answers."""
    gateway.add_run("run_over", "COMPLETED")
    answers = [
        request(gateway, "POST", f"{STREAMS}/run_none/input/s", json={"data": 1}),
        request(gateway, "POST", f"{STREAMS}/run_over/input/s", json={"data": 1}),
        request(gateway, "POST", f"{STREAMS}/run_1/input/s", json={}),
        send(gateway, "s", "x" * (1 << 20)),
        send(gateway, "s", '"' * ((1 << 20) // 2 - 20)),
        request(gateway, "DELETE", f"{STREAMS}/run_1/input/s"),
    ]

    assert [a.status_code for a in answers] == [404, 400, 400, 413, 413, 405]
    assert answers[0].json() == {"ok": False, "error": "Run not found"}
    assert answers[1].json() == {
        "ok": False,
        "error": "Cannot send to input stream on a completed run",
    }


def test_an_input_of_a_finished_run_can_be_read(gateway: GatewayProcess) -> None:
    """Reading needs a known run and a read scope."""
    gateway.add_run("run_read", "COMPLETED")
    path = f"{STREAMS}/run_read/input/s"
    quick = {"Timeout-Seconds": "1"}

    answers = [
        request(gateway, "GET", path, headers=quick),
        request(
            gateway,
            "GET",
            path,
            headers={**quick, **bearer(gateway.secret_key, "read:runs:run_read")},
        ),
        request(gateway, "GET", path, headers=bearer(gateway.secret_key, "read:runs:run_1")),
        request(gateway, "GET", f"{STREAMS}/run_none/input/s"),
    ]

    assert [a.status_code for a in answers] == [200, 200, 403, 404]


# ---------------------------------------------------------------- run streams with a token


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("read:runs:run_scoped", 200),
        ("read:runs", 200),
        ("read:tasks:writer", 200),
        ("read:all", 200),
        ("read:tasks:other", 403),
        ("read:runs:run_1", 403),
        ("write:runs:run_scoped", 403),
        ("read:sessions:run_scoped", 403),
    ],
)
def test_a_page_reads_a_run_stream(gateway: GatewayProcess, scope: str, status: int) -> None:
    """A public token with a read scope for the run or its task subscribes to the run's streams."""
    gateway.add_run("run_scoped", task="writer")
    mint(gateway, "out", run="run_scoped")
    headers = {"Timeout-Seconds": "1", **bearer(gateway.secret_key, scope)}

    answer = request(gateway, "GET", f"{STREAMS}/run_scoped/out", headers=headers)

    assert answer.status_code == status


def test_a_page_writes_no_run_stream(gateway: GatewayProcess) -> None:
    """Run streams are written with the secret key alone; a token, even a mighty one, is 403."""
    headers = bearer(gateway.secret_key, "admin", "write:runs:run_1")
    answers = [
        request(gateway, "PUT", f"{STREAMS}/run_1/self/out", headers=headers),
        request(gateway, "POST", f"{STREAMS}/run_1/self/out/append", content=b"x", headers=headers),
        request(gateway, "GET", "/platform/v1/stats", headers=headers),
    ]

    assert [a.status_code for a in answers] == [403, 403, 401]


# ---------------------------------------------------------------- waitpoints


def test_a_send_completes_a_wait(gateway: GatewayProcess) -> None:
    """A wait is completed by the next record of its stream, and by no other's."""
    waiting = wait(gateway, "next", tags=["a"], idempotencyKey="key-1")
    send(gateway, "another", 1)
    before = waitpoint(gateway, waiting["waitpointId"])
    send(gateway, "next", {"n": 1})
    send(gateway, "next", {"n": 2})
    after = waitpoint(gateway, waiting["waitpointId"])

    assert waiting["isCached"] is False
    assert (before["status"], before["tags"], before["idempotencyKey"]) == (
        "WAITING",
        ["a"],
        "key-1",
    )
    assert "output" not in before
    assert (after["status"], after["output"]) == ("COMPLETED", '{"n":1}')
    assert (after["outputType"], after["outputIsError"]) == ("application/json", False)
    assert after["completedAt"].endswith("Z")


def test_what_is_there_already_completes_a_wait(gateway: GatewayProcess) -> None:
    """A record behind the last one seen completes a wait at once; an older one does not."""
    send(gateway, "there", "zero")
    send(gateway, "there", "one")

    unseen = wait(gateway, "there", lastSeqNum=0)["waitpointId"]
    from_start = wait(gateway, "there")["waitpointId"]
    seen = wait(gateway, "there", lastSeqNum=1)["waitpointId"]

    assert waitpoint(gateway, unseen)["output"] == '"one"'
    assert waitpoint(gateway, from_start)["output"] == '"zero"'
    assert waitpoint(gateway, seen)["status"] == "WAITING"


def test_no_wait_misses_its_record(gateway: GatewayProcess) -> None:
    """However a wait and a record race, the wait is completed."""
    with ThreadPoolExecutor(2) as pool:
        for n in range(25):
            sent = pool.submit(send, gateway, f"race{n}", n)
            waiting = wait(gateway, f"race{n}")
            assert sent.result().status_code == 200
            assert waitpoint(gateway, waiting["waitpointId"])["output"] == str(n)


def test_an_idempotency_key_is_one_wait(gateway: GatewayProcess) -> None:
    """The same key gives the same wait until its time to live is over."""
    first = wait(gateway, "keyed", idempotencyKey="k", idempotencyKeyTTL="1h")
    second = wait(gateway, "keyed", idempotencyKey="k")
    spent = wait(gateway, "keyed", idempotencyKey="short", idempotencyKeyTTL="0s")
    renewed = wait(gateway, "keyed", idempotencyKey="short", idempotencyKeyTTL="0s")

    assert second == {"waitpointId": first["waitpointId"], "isCached": True}
    assert renewed["isCached"] is False
    assert renewed["waitpointId"] != spent["waitpointId"]


def test_a_wait_times_out(gateway: GatewayProcess) -> None:
    """Past its time a wait is timed out with upstream's error, and stays so."""
    waiting = wait(gateway, "late", timeout="0s")["waitpointId"]
    send(gateway, "late", 1)
    tried = request(
        gateway, "POST", f"/api/v1/waitpoints/tokens/{waiting}/complete", json={"data": 1}
    )
    found = waitpoint(gateway, waiting)

    assert tried.json() == {"success": True}
    assert (found["status"], found["outputIsError"]) == ("TIMED_OUT", True)
    assert json.loads(found["output"])["code"] == "TRIGGER_WAITPOINT_TIMEOUT"


def test_times_of_all_kinds(gateway: GatewayProcess) -> None:
    """A time-out is a span, of several units if need be, or a date; anything else is 400."""
    now = time.time()
    spans = {"90s": 90, "1h30m": 5400, "2d": 172_800, "1w": 604_800}
    for text, seconds in spans.items():
        found = waitpoint(gateway, wait(gateway, "times", timeout=text)["waitpointId"])
        due = time.strptime(found["timeoutAt"][:19], "%Y-%m-%dT%H:%M:%S")
        assert 0 <= time.mktime(due) - time.timezone - now - seconds + 1 < 60
    dated = wait(gateway, "times", timeout="2100-01-01T00:00:00Z")["waitpointId"]
    bad = request(
        gateway,
        "POST",
        "/api/v1/runs/run_1/input-streams/wait",
        json={"streamId": "times", "timeout": "soon"},
    )

    assert waitpoint(gateway, dated)["timeoutAt"] == "2100-01-01T00:00:00.000Z"
    assert bad.status_code == 400


def test_a_client_completes_a_wait(gateway: GatewayProcess) -> None:
    """POST complete gives a wait its output, once; a scoped token may do it for its wait alone."""
    waiting = wait(gateway, "by hand")["waitpointId"]
    path = f"/api/v1/waitpoints/tokens/{waiting}/complete"
    mine = bearer(gateway.secret_key, f"write:waitpoints:{waiting}")
    other = bearer(gateway.secret_key, "write:waitpoints:waitpoint_x")

    refused = request(gateway, "POST", path, json={"data": 0}, headers=other)
    first = request(gateway, "POST", path, json={"data": {"a": 1}}, headers=mine)
    second = request(gateway, "POST", path, json={"data": 2})

    assert [a.status_code for a in (refused, first, second)] == [403, 200, 200]
    assert waitpoint(gateway, waiting)["output"] == '{"a":1}'


def test_a_session_wait(gateway: GatewayProcess) -> None:
    """A wait on a session's channel is completed with the raw text of the next append."""

    def wait_for(session: str, **more: Any) -> httpx.Response:
        document = {"session": session, "io": "in", **more}
        return request(gateway, "POST", "/api/v1/runs/run_1/session-streams/wait", json=document)

    def append(text: bytes) -> None:
        request(gateway, "POST", "/realtime/v1/sessions/chat/in/append", content=text)

    waiting = wait_for("chat").json()["waitpointId"]
    append(b'{"kind": "message"}')
    missed = wait_for("chat").json()["waitpointId"]
    seen = wait_for("chat", lastSeqNum=0).json()["waitpointId"]
    unknown = wait_for("session_none")
    bad = wait_for("chat", io="sideways")

    assert waitpoint(gateway, waiting)["output"] == '{"kind": "message"}'
    assert waitpoint(gateway, missed)["output"] == '{"kind": "message"}'
    assert waitpoint(gateway, seen)["status"] == "WAITING"
    assert (unknown.status_code, bad.status_code) == (404, 400)


def test_waits_that_are_refused(gateway: GatewayProcess) -> None:
    """Unknown runs and waits, foreign keys, methods and large bodies have upstream's statuses."""
    path = "/api/v1/runs/run_1/input-streams/wait"
    answers = [
        request(gateway, "POST", path.replace("run_1", "run_none"), json={"streamId": "s"}),
        request(gateway, "GET", "/api/v1/waitpoints/tokens/waitpoint_none"),
        request(gateway, "POST", "/api/v1/waitpoints/tokens/waitpoint_none/complete", json={}),
        request(gateway, "POST", path, json={"streamId": "s", "idempotencyKey": "k" * 2049}),
        request(gateway, "POST", path, json={"streamId": "s", "tags": ["x" * 11_000]}),
        request(gateway, "GET", path),
        request(gateway, "POST", path, json={}, headers=bearer(gateway.secret_key, "admin")),
        request(gateway, "POST", path, json={}, headers={"authorization": "Bearer x"}),
    ]

    assert [a.status_code for a in answers] == [404, 404, 404, 400, 413, 405, 403, 401]


def test_a_wait_outlives_the_gateway(own_gateway: GatewayProcess) -> None:
    """A wait that was registered before a restart is completed after it."""
    waiting = wait(own_gateway, "durable")["waitpointId"]
    own_gateway.restart()
    send(own_gateway, "durable", 5)

    assert waitpoint(own_gateway, waiting)["output"] == "5"
