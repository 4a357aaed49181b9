from __future__ import annotations

import threading
import time

import httpx
import pytest

from tests.gateway_process import GatewayProcess, start_gateway
from tests.integration.gateway.client import as_owner, mint, put


def test_a_status_for_so_many_requests(gateway: GatewayProcess) -> None:
    """The next N requests to the target get the status, in the target's own error shape."""
    stream = mint(gateway, "status")
    gateway.fault(kind="status", status=429, target="stream-store", count=2, retry_after=1.5)
    gateway.fault(kind="status", status=503, target="control-plane", count=1)

    answers = [stream.append("x") for _ in range(3)]
    puts = [put(gateway, "status") for _ in range(2)]

    assert [a.status_code for a in answers] == [429, 429, 200]
    assert answers[0].json()["code"] == "rate_limited"
    assert answers[0].headers["retry-after"] == "1.5"
    assert [a.status_code for a in puts] == [503, 202]
    assert "error" in puts[0].json()


def test_faults_are_listed_and_cleared(gateway: GatewayProcess) -> None:
    """GET shows what is in force with what is left of it, DELETE ends it."""
    stream = mint(gateway, "list")
    gateway.fault(kind="status", status=502, target="stream-store", count=3)
    gateway.fault(kind="delay", seconds=0, target="control-plane")
    stream.append("x")

    listed = gateway.call("GET", "/platform/v1/faults")["faults"]
    gateway.clear_faults()

    assert [(f["kind"], f["count"]) for f in listed] == [("status", 2), ("delay", None)]
    assert gateway.call("GET", "/platform/v1/faults") == {"faults": []}
    assert stream.append("x").status_code == 200


def test_a_delay_holds_the_answer_back(gateway: GatewayProcess) -> None:
    """A delayed request is answered, later by at least the delay."""
    stream = mint(gateway, "delay")
    gateway.fault(kind="delay", seconds=0.3, target="stream-store", count=1)

    started = time.monotonic()
    answer = stream.append("x")

    assert answer.status_code == 200
    assert time.monotonic() - started >= 0.3


def test_a_delay_and_a_status_come_together(gateway: GatewayProcess) -> None:
    """A slow failure is a delay and a status at once."""
    gateway.fault(kind="delay", seconds=0.2, target="control-plane", count=1)
    gateway.fault(kind="status", status=500, target="control-plane", count=1)

    started = time.monotonic()
    answer = put(gateway, "slow")

    assert answer.status_code == 500
    assert time.monotonic() - started >= 0.2


def test_a_drop_stores_nothing(gateway: GatewayProcess) -> None:
    """A dropped request ends without an answer and without effect."""
    stream = mint(gateway, "drop")
    gateway.fault(kind="drop", target="stream-store", count=1)

    with pytest.raises(httpx.RemoteProtocolError):
        stream.append("lost")

    assert stream.append("kept").json()["start"]["seq_num"] == 0


def test_a_drop_after_stores_the_batch(gateway: GatewayProcess) -> None:
    """With `drop-after` the batch is stored and only its ack is lost."""
    stream = mint(gateway, "after")
    gateway.fault(kind="drop-after", target="stream-store", count=1)

    with pytest.raises(httpx.RemoteProtocolError):
        stream.append("stored")

    assert as_owner(gateway, stream).bodies() == ["stored"]


def test_a_dropped_put_is_counted(gateway: GatewayProcess) -> None:
    """A PUT without an answer counts too; it is finished and has no status."""
    gateway.fault(kind="drop", target="control-plane", count=1)

    with pytest.raises(httpx.RemoteProtocolError):
        put(gateway, "dropped")
    stats = gateway.stats()

    assert stats["puts"]["run/run_1/dropped"] == 1
    last = stats["mints"][-1]
    assert (last["status"], last["aborted"]) == (None, False)
    assert last["finished_at"] is not None


def test_a_put_in_flight_is_seen(gateway: GatewayProcess) -> None:
    """A PUT that is being delayed is counted at its arrival and has not finished."""
    gateway.fault(kind="delay", seconds=0.8, target="control-plane", count=2)
    puts = [threading.Thread(target=put, args=(gateway, "flight")) for _ in range(2)]
    for thread in puts:
        thread.start()
    deadline = time.monotonic() + 20
    stats = gateway.stats()
    while stats["puts"].get("run/run_1/flight", 0) < 2 and time.monotonic() < deadline:
        stats = gateway.stats()
    for thread in puts:
        thread.join(20)

    in_flight = [m for m in stats["mints"] if m["slot"] == "run/run_1/flight"]
    finished = [m for m in gateway.stats()["mints"] if m["slot"] == "run/run_1/flight"]

    assert [(m["finished_at"], m["status"]) for m in in_flight] == [(None, None)] * 2
    assert [m["status"] for m in finished] == [202, 202]
    assert finished[1]["started_at"] < finished[0]["finished_at"]


def test_a_put_whose_client_leaves_is_aborted(gateway: GatewayProcess) -> None:
    """A client that gives up ends its mint at that moment, marked as aborted."""
    gateway.fault(kind="delay", seconds=5, target="control-plane", count=1)

    with pytest.raises(httpx.TimeoutException):
        httpx.put(
            f"{gateway.url}/realtime/v1/streams/run_1/self/left",
            headers=gateway.headers,
            timeout=0.3,
        )
    mint_ = gateway.stats()["mints"][-1]
    deadline = time.monotonic() + 4
    while mint_["finished_at"] is None and time.monotonic() < deadline:
        mint_ = gateway.stats()["mints"][-1]

    assert (mint_["slot"], mint_["aborted"], mint_["status"]) == ("run/run_1/left", True, None)
    assert mint_["finished_at"] - mint_["started_at"] < 4


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "explode"},
        {"kind": "status", "target": "stream-store", "status": 200},
        {"kind": "status", "target": "nowhere"},
        {"kind": "delay", "target": "stream-store", "seconds": -1},
        {"kind": "drop", "target": "stream-store", "count": 0},
        {"kind": "drop", "target": "stream-store", "counts": 1},
        {},
    ],
)
def test_what_is_no_fault_is_refused(gateway: GatewayProcess, fault: dict[str, object]) -> None:
    """A fault with a typo is 400 and changes nothing."""
    answer = httpx.post(f"{gateway.url}/platform/v1/faults", json=fault, headers=gateway.headers)

    assert answer.status_code == 400
    assert answer.json()["error"].startswith("not a fault")
    assert gateway.call("GET", "/platform/v1/faults") == {"faults": []}


def test_faults_are_off_unless_allowed(tmp_path) -> None:
    """Without allow_faults the route is 403 whatever is asked."""
    with start_gateway(tmp_path, allow_faults=False) as gateway:
        answers = [
            httpx.request(method, f"{gateway.url}/platform/v1/faults", headers=gateway.headers)
            for method in ("GET", "POST", "DELETE")
        ]

    assert [a.status_code for a in answers] == [403] * 3
