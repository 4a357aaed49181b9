"""The official Python client of the stream store, unchanged, against a real gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import mint

Run = Callable[..., Any]

REFUSED = {"status": 401, "code": "authn"}
FORBIDDEN = {"status": 403, "code": "permission_denied"}


@pytest.mark.parametrize("compression", ["NONE", "GZIP", "ZSTD"])
def test_append_and_read(run: Run, compression: str) -> None:
    """Single appends, reads and tail checks work, with headers, large bodies and compression."""
    answer = run("append_and_read", compression=compression)

    assert answer["acks"] == [[0, 3, 3], [3, 4, 4]]
    assert (answer["tail"], answer["batch_tail"]) == (4, 4)
    assert answer["records"] == [
        [0, "é", [["kind", "text"], ["n", "1"]]],
        [1, "", []],
        [2, "x" * 5000, []],
        [3, "z", []],
    ]


@pytest.mark.parametrize("compression", ["NONE", "GZIP", "ZSTD"])
def test_sessions(run: Run, compression: str) -> None:
    """Pipelined batches of one append session are acked and read back in order."""
    answer = run("sessions", compression=compression)

    assert answer["ends"] == list(range(10, 501, 10))
    assert answer["bodies"] == [f"{batch}.{i}" for batch in range(50) for i in range(10)]


def test_producer(run: Run) -> None:
    """The client's own batching writer gets every record in, once and in order."""
    assert run("producer", count=20_000) == {"in_order": True, "complete": True}


def test_a_reader_that_came_first(run: Run) -> None:
    """A read session at the tail gets records as an append session writes them."""
    assert run("follow") == [str(i) for i in range(20)]


def test_where_reads_start_and_end(run: Run) -> None:
    """Starts by time and from the tail, bounds, clamping, and the error beyond the tail."""
    assert run("starts") == {
        "timestamp": ["20", "30"],
        "tail_offset": ["30"],
        "until": ["10", "20"],
        "count": ["10", "20"],
        "bytes": ["10", "20"],
        "clamped_wait": [],
        "at_tail": [416, 3],
        "beyond": [416, 3],
        "session_until": ["10", "20"],
    }


def test_conditions(run: Run) -> None:
    """Fencing and matched sequence numbers hold, also in a session, where nothing follows."""
    assert run("conditions") == {
        "fenced_out": [412, "ours"],
        "right_token": 1,
        "wrong_place": [412, 2],
        "in_session": [412, 3],
        "stored": ["ours", "x", "good"],
    }


def test_trim(run: Run) -> None:
    """A trim command takes a number of its own and removes what is below its target."""
    assert run("trim") == {"seq_num": 3, "left": [2, 3], "plain": [2]}


def test_a_minted_token_writes_its_stream_and_nothing_else(
    run: Run, gateway: GatewayProcess
) -> None:
    """A credential of the control plane appends and trims; reading and fencing are refused."""
    writer = mint(gateway, "s2python")

    answer = run("refused", token=writer.token, stream="runs/run_1/s2python")
    elsewhere = run("refused", token=writer.token, stream="runs/run_1/other")

    allowed = {name for name, outcome in answer.items() if outcome == "allowed"}
    assert allowed == {"append", "append_session", "trim"}
    assert all(answer[name] == FORBIDDEN for name in answer.keys() - allowed)
    assert set(map(str, elsewhere.values())) == {str(FORBIDDEN)}


@pytest.mark.parametrize("kind", ["expire-tokens", "revoke-tokens"])
def test_an_ended_token_is_refused_at_once(run: Run, gateway: GatewayProcess, kind: str) -> None:
    """Every kind of request with a token that has ended is answered 401 `authn`."""
    writer = mint(gateway, f"s2python-{kind}")
    gateway.fault(kind=kind)

    answer = run("refused", token=writer.token, stream=f"runs/run_1/s2python-{kind}")

    assert len(answer) == 7
    assert all(outcome == REFUSED for outcome in answer.values()), answer


@pytest.mark.parametrize("kind", ["expire-tokens", "revoke-tokens"])
def test_an_append_session_ends_with_its_token(
    run: Run, gateway: GatewayProcess, kind: str
) -> None:
    """A token that ends in mid-session ends the session with 401; what was acked stays."""
    key = f"s2python-mid-{kind}"
    writer = mint(gateway, key)

    answer = run("append_session_ends", kind=kind, token=writer.token, stream=f"runs/run_1/{key}")

    assert answer == {"acked": 1, **REFUSED}
