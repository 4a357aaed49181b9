"""What pages of other origins may do."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.gateway_process import GatewayProcess, start_gateway
from tests.integration.gateway.public_tokens import bearer

ORIGIN = "https://app.example"
OUT = "/realtime/v1/sessions/s/out"


@pytest.fixture(scope="module")
def module_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    origins = (ORIGIN, "http://localhost:3000")
    with start_gateway(tmp_path_factory.mktemp("gateway"), allow_origins=origins) as process:
        process.add_run("run_1")
        yield process


def preflight(gateway: GatewayProcess, origin: str, **more: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-part-id",
        **more,
    }
    return httpx.options(gateway.url + OUT, headers=headers, timeout=30)


@pytest.mark.conformance("EB1")
def test_a_listed_page_may_ask(gateway: GatewayProcess) -> None:
    """EB1: a preflight needs no key, and allows what the official clients send."""
    answer = preflight(gateway, ORIGIN)

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["vary"] == "Origin"
    assert "PUT" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"]
    assert allowed == "authorization,content-type,x-part-id"
    assert "access-control-allow-private-network" not in answer.headers


def test_a_public_page_may_ask_for_a_private_host(gateway: GatewayProcess) -> None:
    """A browser that asks before it lets a public page reach this host is told yes."""
    answer = preflight(gateway, ORIGIN, **{"access-control-request-private-network": "true"})

    assert answer.headers["access-control-allow-private-network"] == "true"


@pytest.mark.conformance("EB1")
def test_a_listed_page_reads_a_session(gateway: GatewayProcess) -> None:
    """EB1: with a public token a listed page subscribes, and may see every header."""
    headers = {
        "origin": ORIGIN,
        "Timeout-Seconds": "1",
        **bearer(gateway.secret_key, "read:sessions:s"),
    }

    answer = httpx.get(gateway.url + OUT, headers=headers, timeout=30)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", OUT, 401),
        ("GET", "/nowhere", 404),
        ("DELETE", OUT, 401),
        ("POST", "/v1/streams/x/records", 401),
        ("GET", "/platform/v1/stats", 401),
    ],
)
def test_a_listed_page_reads_errors(
    gateway: GatewayProcess, method: str, path: str, status: int
) -> None:
    """Errors say that the page may read them, or its author would see a network error."""
    answer = httpx.request(
        method, gateway.url + path, headers={"origin": "http://localhost:3000"}, timeout=30
    )

    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example", "https://app.example:8443", "null"]
)
def test_other_pages_are_refused(gateway: GatewayProcess, origin: str) -> None:
    """Another origin, scheme or port is 403 without a word about origins, good key or not."""
    asked = preflight(gateway, origin)
    sent = httpx.get(gateway.url + OUT, headers={**gateway.headers, "origin": origin})

    for answer in (asked, sent):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_two_origins_are_refused(gateway: GatewayProcess) -> None:
    """A request that claims two origins is refused, although both are listed."""
    headers = [*gateway.headers.items(), ("origin", ORIGIN), ("origin", "http://localhost:3000")]

    assert httpx.get(gateway.url + OUT, headers=headers).status_code == 403


def test_no_origin_no_word(gateway: GatewayProcess) -> None:
    """A client that is no browser gets no headers about origins."""
    answer = httpx.get(f"{gateway.url}/healthz")

    assert not [name for name in answer.headers if name.startswith("access-control")]
