from __future__ import annotations

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import as_owner, mint

pytest.importorskip("h2")


def test_the_same_port_speaks_h2c(gateway: GatewayProcess) -> None:
    """HTTP/2 without TLS, as the official clients open it, serves both APIs on the one port."""
    stream = mint(gateway, "h2c")
    with httpx.Client(http1=False, http2=True, timeout=30) as client:
        minted = client.put(
            f"{gateway.url}/realtime/v1/streams/run_1/self/h2c", headers=gateway.headers
        )
        acks = [
            client.post(
                f"{stream.url}/records", headers=stream.headers, json={"records": [{"body": "x"}]}
            )
            for _ in range(3)
        ]

    assert {a.http_version for a in [minted, *acks]} == {"HTTP/2"}
    assert minted.status_code == 202
    assert [a.json()["start"]["seq_num"] for a in acks] == [0, 1, 2]
    assert as_owner(gateway, stream).bodies() == ["x", "x", "x"]


def test_a_foreign_authority_is_refused(gateway: GatewayProcess) -> None:
    """The Host check holds for HTTP/2, where the name is in `:authority`."""
    with httpx.Client(http1=False, http2=True, timeout=30) as client:
        answer = client.get(f"{gateway.url}/healthz", headers={"host": "evil.example"})

    assert (answer.http_version, answer.status_code) == ("HTTP/2", 403)


def test_a_dropped_h2_request_has_no_answer(gateway: GatewayProcess) -> None:
    """The drop fault closes an HTTP/2 connection too; a new one works."""
    stream = mint(gateway, "h2drop")
    gateway.fault(kind="drop-after", target="stream-store", count=1)
    with httpx.Client(http1=False, http2=True, timeout=30, headers=stream.headers) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(f"{stream.url}/records", json={"records": [{"body": "stored"}]})
        again = client.post(f"{stream.url}/records", json={"records": [{"body": "x"}]})

    assert again.json()["start"]["seq_num"] == 1
