from __future__ import annotations

import json
import os
import signal
import threading

import httpx

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import Stream, as_owner, mint


def write_until_dead(stream: Stream, name: str, acked: list[str], started: threading.Event) -> None:
    """Append until the gateway is gone, noting each record whose ack came."""
    with httpx.Client(headers=stream.headers, timeout=30) as client:
        for n in range(100_000):
            bodies = [json.dumps([name, n, i]) for i in range(3)]
            try:
                answer = client.post(
                    f"{stream.url}/records", json={"records": [{"body": b} for b in bodies]}
                )
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                acked += bodies
            if n == 20:
                started.set()


def test_what_was_acked_survives_a_kill(own_gateway: GatewayProcess) -> None:
    """After SIGKILL amid writes acked records are there once and in order, batches are whole."""
    streams = [mint(own_gateway, f"kill{n % 2}") for n in range(4)]
    acked: list[list[str]] = [[] for _ in streams]
    started = [threading.Event() for _ in streams]
    threads = [
        threading.Thread(target=write_until_dead, args=(s, str(n), acked[n], started[n]))
        for n, s in enumerate(streams)
    ]
    for thread in threads:
        thread.start()
    for event in started:
        assert event.wait(60)

    own_gateway.kill()
    for thread in threads:
        thread.join(60)
    own_gateway.start()

    for key in (0, 1):
        found = as_owner(own_gateway, streams[key]).bodies()
        assert len(found) % 3 == 0
        assert len(found) == len(set(found))
        for writer in (key, key + 2):
            mine = [body for body in found if json.loads(body)[0] == str(writer)]
            assert mine[: len(acked[writer])] == acked[writer]
        assert streams[key].append("next").json()["start"]["seq_num"] == len(found)


def test_a_stop_loses_nothing_in_flight(own_gateway: GatewayProcess) -> None:
    """Requests in flight at SIGTERM are finished: what was acked is there."""
    stream = mint(own_gateway, "term")
    acked: list[str] = []
    started = threading.Event()
    thread = threading.Thread(target=write_until_dead, args=(stream, "t", acked, started))
    thread.start()
    assert started.wait(60)

    code = own_gateway.stop()
    thread.join(60)
    own_gateway.start()

    assert code == 0
    assert as_owner(own_gateway, stream).bodies()[: len(acked)] == acked


def test_a_restart_keeps_the_address(own_gateway: GatewayProcess) -> None:
    """After a restart old endpoints are good: same port, same stream, same numbers."""
    stream = mint(own_gateway, "same")
    stream.append("a")

    own_gateway.restart()

    assert stream.append("b").json()["start"]["seq_num"] == 1
    assert own_gateway.stats()["records"]["run_1/same"] == 2


def test_a_frozen_moment_is_caught_up(own_gateway: GatewayProcess) -> None:
    """Requests that arrive while the gateway is stopped by a signal are answered afterwards."""
    stream = mint(own_gateway, "frozen")
    os.kill(own_gateway.pid, signal.SIGSTOP)
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(stream.append("x"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()

    os.kill(own_gateway.pid, signal.SIGCONT)
    for thread in threads:
        thread.join(30)

    assert [a.status_code for a in answers] == [200] * 4
    assert sorted(a.json()["start"]["seq_num"] for a in answers) == [0, 1, 2, 3]
