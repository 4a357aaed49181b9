from __future__ import annotations

import socket

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import mint

ROUTES = [
    ("PUT", "/realtime/v1/streams/run_1/self/out"),
    ("HEAD", "/realtime/v1/streams/run_1/self/out"),
    ("POST", "/realtime/v1/streams/run_1/self/out"),
    ("POST", "/realtime/v1/streams/run_1/self/out/append"),
    ("GET", "/realtime/v1/streams/run_1/out"),
    ("POST", "/realtime/v1/streams/run_1/input/s"),
    ("GET", "/realtime/v1/streams/run_1/input/s"),
    ("PUT", "/realtime/v1/sessions/s/out"),
    ("GET", "/realtime/v1/sessions/s/out"),
    ("HEAD", "/realtime/v1/sessions/s/out"),
    ("POST", "/realtime/v1/sessions/s/in/append"),
    ("GET", "/realtime/v1/sessions/s/out/records"),
    ("GET", "/realtime/v1/sessions/s/channels/side/out/records"),
    ("POST", "/api/v1/sessions"),
    ("GET", "/api/v1/sessions"),
    ("GET", "/api/v1/sessions/s"),
    ("PATCH", "/api/v1/sessions/s"),
    ("POST", "/api/v1/sessions/s/close"),
    ("POST", "/api/v1/sessions/s/end-and-continue"),
    ("GET", "/api/v1/sessions/s/snapshot-url"),
    ("POST", "/api/v1/runs/run_1/input-streams/wait"),
    ("POST", "/api/v1/runs/run_1/session-streams/wait"),
    ("GET", "/api/v1/waitpoints/tokens/w"),
    ("POST", "/api/v1/waitpoints/tokens/w/complete"),
    ("POST", "/api/v1/auth/jwt/claims"),
    ("POST", "/v1/streams/runs%2Frun_1%2Fout/records"),
    ("GET", "/v1/streams/runs%2Frun_1%2Fout/records"),
    ("GET", "/v1/streams/runs%2Frun_1%2Fout/records/tail"),
    ("GET", "/v1/basins"),
    ("GET", "/platform/v1/ping"),
    ("GET", "/platform/v1/stats"),
    ("GET", "/platform/v1/faults"),
    ("POST", "/platform/v1/faults"),
    ("DELETE", "/platform/v1/faults"),
]


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Bearer", "Basic dTpw", "x"])
def test_nothing_is_done_without_a_key(gateway: GatewayProcess, authorization: str | None) -> None:
    """Every route but the health check is 401 without a good key or token, in its API's shape."""
    headers = {"s2-basin": "td-embedded"}
    if authorization is not None:
        headers["authorization"] = authorization

    with httpx.Client(base_url=gateway.url, headers=headers, timeout=30) as client:
        answers = [client.request(method, path) for method, path in ROUTES]

    assert [a.status_code for a in answers] == [401] * len(ROUTES)
    for (method, path), answer in zip(ROUTES, answers, strict=True):
        if method != "HEAD":
            assert answer.json().get("code" if path.startswith("/v1") else "error")


def test_a_stream_token_opens_no_other_door(gateway: GatewayProcess) -> None:
    """A stream's token is refused by the control plane and the admin routes."""
    token = {"authorization": f"Bearer {mint(gateway, 'door').token}"}

    with httpx.Client(base_url=gateway.url, headers=token, timeout=30) as client:
        answers = [client.request(m, path) for m, path in ROUTES if not path.startswith("/v1")]

    assert {a.status_code for a in answers} == {401}


def test_health_and_ping(gateway: GatewayProcess) -> None:
    """Health needs no key; ping tells a good key from a bad one."""
    health = httpx.get(f"{gateway.url}/healthz")
    ping = httpx.get(f"{gateway.url}/platform/v1/ping", headers=gateway.headers)

    assert [(a.status_code, a.json()) for a in (health, ping)] == [(200, {"ok": True})] * 2


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""]
)
def test_a_foreign_host_is_refused(gateway: GatewayProcess, host: str) -> None:
    """A request for another host, as DNS rebinding makes them, is 403 before all else."""
    headers = {**gateway.headers, "host": host.format(port=gateway.port)}

    answers = [
        httpx.request(method, gateway.url + path, headers=headers)
        for method, path in [("GET", "/healthz"), *ROUTES]
    ]

    assert {a.status_code for a in answers} == {403}
    assert "Host header" in answers[0].json()["error"]


def test_two_host_headers_are_refused(gateway: GatewayProcess) -> None:
    """Two Host headers, of which one is ours, are 403."""
    ours = f"127.0.0.1:{gateway.port}"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(f"GET /healthz HTTP/1.1\r\nhost: {ours}\r\nhost: x\r\n\r\n".encode())
        head = connection.recv(100)

    assert head.split(b" ")[1] in {b"403", b"400"}


def test_localhost_is_our_host(gateway: GatewayProcess) -> None:
    """The gateway can be called by the name localhost."""
    answer = httpx.get(f"{gateway.url}/healthz", headers={"host": f"localhost:{gateway.port}"})

    assert answer.status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_web_page_is_refused(gateway: GatewayProcess, origin: str) -> None:
    """A request that carries an Origin comes from a page; none is allowed, with a good key too."""
    headers = {**gateway.headers, "origin": origin}

    answer = httpx.put(f"{gateway.url}/realtime/v1/streams/run_1/self/page", headers=headers)

    assert answer.status_code == 403
    assert origin in answer.json()["error"]
    assert "run/run_1/page" not in gateway.stats()["puts"]
