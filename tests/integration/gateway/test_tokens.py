from __future__ import annotations

import hashlib
import sqlite3
import time
from contextlib import closing

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.client import Stream, as_owner, mint


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_token_is_for_one_stream(gateway: GatewayProcess) -> None:
    """A token used on another stream is 403 `permission_denied`."""
    mine, theirs = mint(gateway, "mine"), mint(gateway, "theirs")

    answer = Stream(theirs.url, mine.headers).append("x")

    assert refusal(answer) == (403, "permission_denied")
    assert as_owner(gateway, theirs).bodies() == []


def test_a_token_allows_what_upstreams_does(gateway: GatewayProcess) -> None:
    """A writer's token appends and trims; fencing, reading and asking for the tail are 403."""
    stream = mint(gateway, "ops")
    trim = {"records": [{"body": "\0" * 8, "headers": [["", "trim"]]}]}
    fence = {"records": [{"body": "f", "headers": [["", "fence"]]}]}

    allowed = [stream.append("x"), stream.post(trim)]
    refused = [stream.post(fence), stream.get(seq_num=0), stream.get("/records/tail")]

    assert [a.status_code for a in allowed] == [200, 200]
    assert [refusal(a) for a in refused] == [(403, "permission_denied")] * 3
    assert "check-tail" in refused[-1].json()["message"]


@pytest.mark.parametrize("kind", ["expire-tokens", "revoke-tokens"])
def test_ending_tokens_holds_at_once(gateway: GatewayProcess, kind: str) -> None:
    """After the fault every live token is 401 `authn`; a new PUT helps; the secret key stays."""
    old = [mint(gateway, f"{kind}1"), mint(gateway, f"{kind}2")]
    before = [stream.append("a").status_code for stream in old]

    gateway.fault(kind=kind)
    after = [refusal(stream.append("b")) for stream in old]
    renewed = mint(gateway, f"{kind}1").append("c")

    assert (before, after) == ([200, 200], [(401, "authn")] * 2)
    assert renewed.json()["start"]["seq_num"] == 1
    assert as_owner(gateway, old[0]).bodies() == ["a", "c"]


def test_the_tokens_of_one_slot_can_be_ended_alone(gateway: GatewayProcess) -> None:
    """With a slot only its tokens end, and the answer counts them."""
    one, two, other = mint(gateway, "s/1"), mint(gateway, "s/1"), mint(gateway, "s2")

    ended = gateway.fault(kind="expire-tokens", slot="run/run_1/s%2F1")

    assert ended == {"tokens": 2}
    assert [s.append("x").status_code for s in (one, two, other)] == [401, 401, 200]


def test_an_old_token_dies_of_age(own_gateway: GatewayProcess) -> None:
    """A token is good for a day, to the second that its row says."""
    stream = mint(own_gateway, "age")
    own_gateway.stop()
    with closing(sqlite3.connect(own_gateway.data_dir / "platform.db")) as database, database:
        ((issued, expires),) = database.execute("SELECT issued_at, expires_at FROM tokens")
        database.execute("UPDATE tokens SET expires_at = ?", (time.time() + 1.0,))
    own_gateway.start()
    deadline = time.monotonic() + 30

    statuses = {200}
    while 401 not in statuses and time.monotonic() < deadline:
        statuses.add(stream.append("x").status_code)

    assert expires - issued == pytest.approx(24 * 3600)
    assert statuses == {200, 401}


def test_no_token_is_kept_in_clear(own_gateway: GatewayProcess) -> None:
    """The file holds hashes: neither token nor secret key is anywhere in the data folder."""
    stream = mint(own_gateway, "secret")
    stream.append("x")
    own_gateway.stop()

    files = [p for p in own_gateway.data_dir.iterdir() if p.is_file()]
    content = b"".join(path.read_bytes() for path in files)

    assert hashlib.sha256(stream.token.encode()).digest() in content
    assert stream.token.encode() not in content
    assert stream.token.removeprefix("tds_").encode() not in content
    assert own_gateway.secret_key.encode() not in content


def test_the_file_is_private(own_gateway: GatewayProcess) -> None:
    """platform.db and its companions are readable by their owner alone."""
    mint(own_gateway, "mode")

    files = list(own_gateway.data_dir.glob("platform.db*"))

    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_tokens_survive_a_restart(own_gateway: GatewayProcess) -> None:
    """After a restart old tokens work as before, revoked ones stay revoked."""
    good, bad = mint(own_gateway, "good"), mint(own_gateway, "bad")
    own_gateway.fault(kind="revoke-tokens", slot="run/run_1/bad")

    own_gateway.restart()

    assert good.append("x").status_code == 200
    assert refusal(bad.append("x")) == (401, "authn")
