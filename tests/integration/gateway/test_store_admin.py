"""Basins, streams and tokens of the stream store, over plain HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from tests.gateway_process import GatewayProcess

BASIN = "made-for-this"
ALL: dict[str, str] = {"prefix": ""}


class Store:
    """The stream store as a holder of one token sees it."""

    def __init__(self, gateway: GatewayProcess, token: str | None = None) -> None:
        self._url = f"{gateway.url}/v1"
        self._token = token or gateway.secret_key

    def call(self, method: str, path: str, document: Any = None, **headers: str) -> Any:
        headers |= {"authorization": f"Bearer {self._token}"}
        return httpx.request(method, self._url + path, json=document, headers=headers, timeout=30)

    def issue(self, token_id: str, **scope: Any) -> str:
        answer = self.call("POST", "/access-tokens", {"id": token_id, "scope": scope})
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["access_token"]
        return token


def test_what_was_made_is_there_after_a_restart(own_gateway: GatewayProcess) -> None:
    """Basins, configurations and tokens last; of a token the file holds no more than a hash."""
    owner = Store(own_gateway)
    owner.call("POST", "/basins", {"basin": BASIN, "config": {"create_stream_on_append": True}})
    config = {"timestamping": {"mode": "arrival"}}
    owner.call("POST", "/streams", {"stream": "s", "config": config}, **{"s2-basin": BASIN})
    token = owner.issue("t", basins=ALL, streams=ALL, ops=["append", "create-stream"])

    own_gateway.restart()

    record = {"records": [{"body": "x", "timestamp": 5}]}
    path, headers = "/streams/s/records", {"s2-basin": BASIN}
    ack = Store(own_gateway, token).call("POST", path, record, **headers).json()
    assert ack["start"]["timestamp"] > 5
    assert owner.call("GET", "/basins").json()["basins"][0]["name"] == BASIN
    assert token.encode() not in b"".join(
        file.read_bytes() for file in own_gateway.data_dir.glob("platform.db*")
    )


def test_asking_twice_is_asking_once(gateway: GatewayProcess) -> None:
    """A creation that is sent again with its request token is answered as the first time."""
    owner = Store(gateway)
    answers = [
        owner.call(
            "POST",
            "/streams",
            {"stream": "twice"},
            **{"s2-basin": "td-embedded", "s2-request-token": token},
        )
        for token in ("one", "one", "two")
    ]

    assert [answer.status_code for answer in answers] == [201, 201, 409]
    assert answers[0].json() == answers[1].json()


def test_a_scope_bounds_what_is_seen_and_done(gateway: GatewayProcess) -> None:
    """A token of one prefix lists and deletes below it, and does only what its groups allow."""
    owner, headers = Store(gateway), {"s2-basin": "td-embedded"}
    for name in ("mine/a", "mine/b", "other/a"):
        owner.call("POST", "/streams", {"stream": name}, **headers)
    token = owner.issue(
        "scoped",
        basins={"exact": "td-embedded"},
        streams={"prefix": "mine/"},
        op_groups={"basin": {"read": True, "write": True}},
    )
    holder = Store(gateway, token)

    listed = [
        [stream["name"] for stream in holder.call("GET", path, **headers).json()["streams"]]
        for path in ("/streams", "/streams?prefix=mine/b", "/streams?prefix=other/")
    ]
    done = [
        holder.call(method, path, **headers).status_code
        for method, path in (
            ("DELETE", "/streams/mine%2Fa"),
            ("DELETE", "/streams/other%2Fa"),
            ("GET", "/streams/mine%2Fb/records/tail"),
            ("GET", "/basins"),
            ("DELETE", "/access-tokens/scoped"),
        )
    ]

    assert listed == [["mine/a", "mine/b"], ["mine/b"], []]
    assert done == [202, 403, 403, 403, 403]


def test_the_control_planes_basin_stays_as_it_is(gateway: GatewayProcess) -> None:
    """Its configuration and itself are out of reach, for the secret key too."""
    owner = Store(gateway)
    answers = [
        owner.call("DELETE", "/basins/td-embedded"),
        owner.call("PATCH", "/basins/td-embedded", {"create_stream_on_append": False}),
        owner.call("POST", "/basins", {"basin": "Not A Name"}),
        owner.call("GET", "/basins/not-there-at-all"),
    ]

    assert [answer.status_code for answer in answers] == [403, 403, 422, 404]


def test_basins_do_not_see_each_other(gateway: GatewayProcess) -> None:
    """Streams of one name in two basins are two streams, and each list has its own."""
    owner = Store(gateway)
    owner.call("PUT", "/basins/first-of-two")
    owner.call("PUT", "/basins/second-of-two")
    for basin in ("first-of-two", "second-of-two"):
        owner.call("POST", "/streams", {"stream": "same"}, **{"s2-basin": basin})
    owner.call(
        "POST",
        "/streams/same/records",
        {"records": [{"body": "x"}]},
        **{"s2-basin": "first-of-two"},
    )

    tails = [
        owner.call("GET", "/streams/same/records/tail", **{"s2-basin": basin}).json()
        for basin in ("first-of-two", "second-of-two")
    ]
    embedded = owner.call("GET", "/streams", **{"s2-basin": "td-embedded"}).json()["streams"]

    assert [tail["tail"]["seq_num"] for tail in tails] == [1, 0]
    assert "same" not in [stream["name"] for stream in embedded]
