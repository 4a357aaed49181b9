"""The official npm client of the stream store, unchanged, against a real gateway."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import mint
from tests.interop.node import Node

pytestmark = pytest.mark.interop

Run = Callable[..., Any]

REFUSED = {"status": 401, "code": "authn"}
FORBIDDEN = {"status": 403, "code": "permission_denied"}
TRANSPORTS = ["s2s", "fetch"]


def has_zstd(node: Node) -> bool:
    script = "process.exit(require('node:zlib').zstdCompressSync ? 0 : 1)"
    return subprocess.run([node.executable, "-e", script], check=False).returncode == 0


def test_append_and_read(run: Run) -> None:
    """Single appends and reads as JSON and as Protocol Buffers, and tail checks."""
    assert run("appendAndRead") == {
        "acks": [[0, 2, 2], [2, 3, 3]],
        "tail": 3,
        "text": [
            [0, "é", [["kind", "text"]]],
            [1, "x" * 5000, []],
            [2, "\x00\ufffd", []],
        ],
        "last": [0, 255],
    }


@pytest.mark.parametrize(
    ("transport", "compression"),
    [("s2s", "none"), ("s2s", "gzip"), ("s2s", "zstd"), ("fetch", "none")],
)
def test_sessions(run: Run, node: Node, transport: str, compression: str) -> None:
    """Batches of an append session are acked and read back in order, on every transport."""
    if compression == "zstd" and not has_zstd(node):
        pytest.skip("this Node has no zstd; it came with 22.15")
    answer = run("sessions", transport=transport, compression=compression)

    assert answer["ends"] == list(range(10, 501, 10))
    assert answer["bodies"] == [f"{batch}.{i}" for batch in range(50) for i in range(10)]


def test_producer(run: Run) -> None:
    """The client's own batching writer gets every record in, once and in order."""
    assert run("producer", count=5_000) == {"inOrder": True, "complete": True}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_reader_that_came_first(run: Run, transport: str) -> None:
    """A read session at the tail gets records as an append session writes them."""
    assert run("follow", transport=transport) == [str(i) for i in range(20)]


def test_conditions(run: Run) -> None:
    """Fencing and matched sequence numbers hold, also in a session, where nothing follows."""
    assert run("conditions") == {
        "fencedOut": [412, "ours"],
        "rightToken": 1,
        "wrongPlace": [412, 2],
        "inSession": [2, 412, 412],
        "stored": ["ours", "x", "good"],
        "beyond": [416, 3],
    }


def test_trim(run: Run) -> None:
    """A trim command takes a number of its own and removes what is below its target."""
    assert run("trim") == {"seqNum": 3, "left": [2, 3], "plain": [2]}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_minted_token_writes_its_stream_and_nothing_else(
    run: Run, gateway: GatewayProcess, transport: str
) -> None:
    """A credential of the control plane appends and trims; reading and fencing are refused."""
    key = f"s2node-{transport}"
    writer = mint(gateway, key)

    answer = run("refused", token=writer.token, stream=f"runs/run_1/{key}", transport=transport)

    allowed = {name for name, outcome in answer.items() if outcome == "allowed"}
    assert allowed == {"append", "bytes", "appendSession", "trim"}
    assert all(answer[name] == FORBIDDEN for name in answer.keys() - allowed), answer


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", ["expire-tokens", "revoke-tokens"])
def test_an_ended_token_is_refused_at_once(
    run: Run, gateway: GatewayProcess, kind: str, transport: str
) -> None:
    """Every kind of request with a token that has ended is answered 401 `authn`."""
    key = f"s2node-{kind}-{transport}"
    writer = mint(gateway, key)
    gateway.fault(kind=kind)

    answer = run("refused", token=writer.token, stream=f"runs/run_1/{key}", transport=transport)

    assert len(answer) == 8
    assert all(outcome == REFUSED for outcome in answer.values()), answer


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", ["expire-tokens", "revoke-tokens"])
def test_an_append_session_ends_with_its_token(
    run: Run, gateway: GatewayProcess, kind: str, transport: str
) -> None:
    """A token that ends in mid-session ends the session with 401; what was acked stays."""
    key = f"s2node-mid-{kind}-{transport}"
    writer = mint(gateway, key)

    answer = run(
        "appendSessionEnds",
        kind=kind,
        token=writer.token,
        stream=f"runs/run_1/{key}",
        transport=transport,
    )

    assert answer == {"acked": 1, **REFUSED}


def test_a_read_session_ends_with_its_token(run: Run) -> None:
    """A session that waits at the tail ends with 401 when its token is revoked."""
    assert run("readSessionEnds") == {"read": 1, **REFUSED}


def test_basins_and_streams_are_administered(run: Run) -> None:
    """Basins and streams are made, listed, configured and deleted through the client."""
    assert run("administer") == {
        "created": "interop-node-basin",
        "again": {"status": 409, "code": "resource_already_exists"},
        "ensured": ["noop", "updated"],
        "basins": ["interop-node-basin"],
        "config": [True, True],
        "ensuredStream": ["created", "noop"],
        "retention": {"ageSecs": 3600},
        "streams": ["a/2", "b", "c"],
        "basinsLeft": 0,
    }
