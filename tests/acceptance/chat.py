"""A chat client as a browser is one: HTTP, a public access token and server-sent events alone."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from httpx_sse import connect_sse

from tests.runtime_process import PATIENCE, RuntimeProcess

Headers = dict[str, str]


@dataclass(slots=True)
class Record:
    """One record of `out`."""

    seq: int
    headers: Headers
    data: Any = None

    @property
    def control(self) -> str | None:
        """What a control record means, None for data."""
        return self.headers.get("trigger-control")


@dataclass(slots=True)
class Answer:
    """One turn as its client sees it."""

    chunks: list[Any] = field(default_factory=list)
    end: Headers = field(default_factory=dict)
    """The headers of its turn-complete."""
    end_seq: int = -1

    @property
    def text(self) -> str:
        """All text deltas, joined."""
        return "".join(c["delta"] for c in self.chunks if c.get("type") == "text-delta")


class ChatClient:
    """One chat with an agent; a context manager.

    Attributes:
        chat_id: The session's external id.
        token: The public access token; renewed with every turn.
        run_id: Of the run that the session was started with.
        cursor: The last record of `out` that was read.
    """

    def __init__(self, runtime: RuntimeProcess, task: str, chat_id: str, **payload: Any) -> None:
        self.chat_id = chat_id
        self.cursor: int | None = None
        self._http = httpx.Client(base_url=runtime.url, timeout=PATIENCE, trust_env=False)
        started = self._http.post(
            "/api/v1/sessions",
            headers={"authorization": f"Bearer {runtime.secret_key}"},
            json={
                "type": "chat.agent",
                "externalId": chat_id,
                "taskIdentifier": task,
                "triggerConfig": {
                    "basePayload": {"chatId": chat_id, "trigger": "preload"} | payload
                },
            },
        )
        assert started.is_success, started.text
        self.token: str = started.json()["publicAccessToken"]
        self.run_id: str = started.json()["runId"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def append(self, record: Any) -> int:
        """Append to `in`; returns the record's number."""
        body = record if isinstance(record, str) else json.dumps(record)
        answer = self._http.post(
            f"/realtime/v1/sessions/{self.chat_id}/in/append",
            headers={"authorization": f"Bearer {self.token}"},
            content=body,
        )
        assert answer.is_success, answer.text
        seq: int = answer.json()["seq"]

        return seq

    def send(self, text: str, **payload: Any) -> int:
        """Send a user's message; returns its number on `in`."""
        message = {"id": f"u-{text}", "role": "user", "parts": [{"type": "text", "text": text}]}
        default = {"chatId": self.chat_id, "trigger": "submit-message", "message": message}

        return self.append({"kind": "message", "payload": default | payload})

    def stop(self) -> int:
        """Ask the agent to stop."""
        return self.append({"kind": "stop"})

    def ask(self, text: str) -> Answer:
        """Send a message and return the turn that answers it."""
        return self.answer(self.send(text))

    def answer(self, since: int | None = None) -> Answer:
        """Return the turn that answers record *since* of `in`, by the official client's rule."""
        found = Answer()
        for record in self.records():
            if record.control is None:
                found.chunks.append(record.data)
            elif record.control == "turn-complete":
                cursor = record.headers.get("session-in-event-id")
                if since is not None and cursor is not None and int(cursor) < since:
                    found = Answer()
                    continue
                found.end, found.end_seq = record.headers, record.seq
                self.token = record.headers.get("public-access-token", self.token)
                return found
        raise AssertionError(f"the turn never ended; so far: {found.chunks}")

    def records(self) -> Generator[Record, None, None]:
        """Yield what comes on `out` behind the cursor."""
        headers = {"authorization": f"Bearer {self.token}", "timeout-seconds": str(int(PATIENCE))}
        if self.cursor is not None:
            headers["last-event-id"] = str(self.cursor)
        path = f"/realtime/v1/sessions/{self.chat_id}/out"
        with connect_sse(self._http, "GET", path, headers=headers) as source:
            for event in source.iter_sse():
                if event.event != "batch":
                    continue
                for stored in json.loads(event.data)["records"]:
                    self.cursor = stored["seq_num"]
                    pairs = stored.get("headers", [])
                    if pairs and pairs[0][0] == "":
                        continue
                    body = stored.get("body")
                    data = json.loads(body)["data"] if body else None
                    yield Record(stored["seq_num"], dict(pairs), data)
