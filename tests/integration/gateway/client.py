"""What the tests speak to a gateway with: plain HTTP, as any client would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from tests.gateway_process import GatewayProcess

TIMEOUT_S = 30.0


def put(gateway: GatewayProcess, key: str, *, run: str = "run_1", target: str = "self") -> Any:
    """Mint a credential; returns the answer whatever it is."""
    path = f"/realtime/v1/streams/{quote(run, safe='')}/{target}/{quote(key, safe='')}"
    return httpx.put(gateway.url + path, headers=gateway.headers, timeout=TIMEOUT_S)


@dataclass(frozen=True)
class Stream:
    """A stream as a holder of one token sees it; `as_owner` sees it with the secret key."""

    url: str
    headers: dict[str, str]

    @property
    def token(self) -> str:
        return self.headers["authorization"].removeprefix("Bearer ")

    def append(self, *bodies: str, **more: Any) -> httpx.Response:
        return self.post({"records": [{"body": body} for body in bodies], **more})

    def post(self, document: Any, **headers: str) -> httpx.Response:
        return httpx.post(
            f"{self.url}/records",
            json=document,
            headers={**self.headers, **headers},
            timeout=TIMEOUT_S,
        )

    def get(self, path: str = "/records", /, *, headers: Any = None, **query: Any) -> Any:
        return httpx.get(
            self.url + path,
            params=query,
            headers={**self.headers, **(headers or {})},
            timeout=TIMEOUT_S,
        )

    def bodies(self) -> list[str]:
        """Every body in the stream."""
        found: list[str] = []
        while True:
            answer = self.get(seq_num=len(found))
            if answer.status_code == 416:
                return found
            found += [record.get("body", "") for record in answer.json()["records"]]


def mint(gateway: GatewayProcess, key: str, *, run: str = "run_1") -> Stream:
    """A stream with a fresh token."""
    answer = put(gateway, key, run=run)
    assert answer.status_code == 202, answer.text
    return Stream(
        url=f"{answer.headers['x-s2-endpoint']}/streams/"
        + quote(answer.headers["x-s2-stream-name"], safe=""),
        headers={
            "authorization": f"Bearer {answer.headers['x-s2-access-token']}",
            "s2-basin": answer.headers["x-s2-basin"],
        },
    )


def as_owner(gateway: GatewayProcess, stream: Stream) -> Stream:
    """The same stream with the secret key, which may do everything."""
    return Stream(stream.url, {**stream.headers, **gateway.headers})


@dataclass(frozen=True)
class Event:
    name: str
    id: str
    data: Any


def events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events from the lines of a body."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        data = fields.get("data", "")
        yield Event(
            fields.get("event", ""),
            fields.get("id", ""),
            data if data == "[DONE]" else json.loads(data),
        )
        fields = {}


def read_events(url: str, headers: dict[str, str], **query: Any) -> list[Event]:
    """All events of a session that ends by itself."""
    answer = httpx.get(
        url,
        params=query,
        headers={**headers, "accept": "text/event-stream"},
        timeout=TIMEOUT_S,
    )
    assert answer.status_code == 200, answer.text
    return list(events(iter(answer.text.split("\n")[:-1])))
