"""The half of the platform in memory that keeps sessions and input streams; see `testing`."""

import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from td_worker.streams.envelope import decode_envelope, encode_envelope

if TYPE_CHECKING:
    from td_worker.testing import FakePlatform, StoredRecord

__all__ = ["FakeSessions"]

_CHANNEL: Final = "/realtime/v1/sessions/{session}/{io:in|out}"
_SIDE: Final = (
    "/realtime/v1/sessions/{session}/channels/{channel:[A-Za-z0-9._-]{1,128}}/{io:in|out}"
)


class FakeSessions:
    """
    Sessions and input streams in memory; the `sessions` of a platform.

    Attributes:
        rows: What is kept of each session that was started or added, by the id it was given.
        part_ids: The part id of each append by the control plane, in order of arrival.
        ends: What runs said that ended: `end` or `end-and-continue`, and the body.
    """

    def __init__(self, platform: "FakePlatform") -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.part_ids: list[str | None] = []
        self.ends: list[tuple[str, dict[str, Any]]] = []
        self._platform = platform
        self._claimed: dict[tuple[str, str], int] = {}

    # --- what tests look at and turn -----------------------------------------------------------

    def add(self, external_id: str | None = None, **facts: Any) -> str:
        """Keep a session as if somebody had started it; return the id that it was given."""
        session_id = f"session_{secrets.token_hex(8)}"
        now = datetime.now(UTC).isoformat()
        row: dict[str, Any] = {
            "id": session_id,
            "externalId": external_id,
            "type": "test",
            "taskIdentifier": "test",
            "tags": [],
            "createdAt": now,
            "updatedAt": now,
        }
        self.rows[session_id] = {**row, **facts}

        return session_id

    def records(
        self, session_id: str, io: str = "out", *, channel: str = "main"
    ) -> "list[StoredRecord]":
        """Return what one direction of a channel holds, duplicates included."""
        return self._platform.stored(self._stream(session_id, channel, io))

    def chunks(self, session_id: str, io: str = "out", *, channel: str = "main") -> list[Any]:
        """Return the data of what it holds, each envelope id once, in order."""
        found: dict[Any, Any] = {}
        for record in self.records(session_id, io, channel=channel):
            envelope = decode_envelope(record.body)
            if envelope is not None and envelope.data is not msgspec.UNSET:
                found.setdefault(envelope.id, envelope.data)

        return list(found.values())

    def send(
        self, session_id: str, data: Any, *, channel: str = "main", timestamp: int | None = None
    ) -> None:
        """Send to `in` as a client would."""
        name = self._stream(session_id, channel, "in")
        self._platform.put_bodies(name, [_body(data)], timestamp=timestamp)

    def send_input(self, run_id: str, stream_id: str, data: Any) -> None:
        """Send to an input stream of a run as a client would."""
        self._platform.put_bodies(_input_name(run_id, stream_id), [_body(data)])

    # --- the server ----------------------------------------------------------------------------

    def add_routes(self, app: web.Application) -> None:
        """Answer the session and input routes."""
        sessions = "/api/v1/sessions"
        app.router.add_post(sessions, self._start)
        app.router.add_get(sessions, self._list)
        app.router.add_get(sessions + "/{session}", self._retrieve)
        app.router.add_patch(sessions + "/{session}", self._update)
        app.router.add_post(sessions + "/{session}/close", self._close)
        app.router.add_post(sessions + "/{session}/{end:end|end-and-continue}", self._end_run)
        for channel in (_CHANNEL, _SIDE):
            app.router.add_put(channel, self._mint)
            app.router.add_get(channel, self._read)
            app.router.add_post(channel + "/append", self._append)
            app.router.add_get(channel + "/records", self._drain)
        app.router.add_post("/realtime/v1/streams/{run}/input/{key}", self._take_input)
        app.router.add_get("/realtime/v1/streams/{run}/input/{key}", self._read_input)

    async def _start(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._platform.check_caller(request)) is not None:
            return refused
        told = await request.json()
        row = self._row(told.get("externalId") or "")
        if row is not None and row.get("closedAt"):
            return web.json_response({"error": "The session is closed"}, status=409)
        cached = row is not None
        if row is None:
            external_id = told.pop("externalId", None)
            row = self.rows[self.add(external_id, **told)]
        row["triggerConfig"] = told["triggerConfig"]
        answer = {"runId": "run_1", "publicAccessToken": "a.b.c", "isCached": cached}

        return web.json_response({**row, **answer}, status=200 if cached else 201)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._platform.check_caller(request)) is not None:
            return refused
        size = int(request.query.get("page[size]", "20"))
        after = request.query.get("page[after]")
        rows = [row for row in self.rows.values() if _fits(row, request.query)]
        start = 0 if after is None else 1 + [row["id"] for row in rows].index(after)
        page = rows[start : start + size]
        pagination = {"next": page[-1]["id"]} if start + size < len(rows) else {}

        return web.json_response({"data": page, "pagination": pagination})

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        return self._checked(request) or web.json_response(self._asked(request))

    async def _update(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._checked(request)) is not None:
            return refused
        self._asked(request).update(await request.json())

        return web.json_response(self._asked(request))

    async def _close(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._checked(request)) is not None:
            return refused
        row, told = self._asked(request), await request.json()
        if not row.get("closedAt"):
            row["closedAt"] = datetime.now(UTC).isoformat()
            row["closedReason"] = told.get("reason")

        return web.json_response(row)

    async def _end_run(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._checked(request)) is not None:
            return refused
        told = await request.json()
        self.ends.append((request.match_info["end"], told))

        return web.json_response({"runId": told["callingRunId"], "swapped": False})

    async def _mint(self, request: web.Request) -> web.StreamResponse:
        if refused := self._channel_refused(request, "Cannot initialize a closed session"):
            return refused
        session_id, channel, io = _channel(request)
        key = io if channel == "main" else f"channels/{channel}/{io}"
        name = self._stream(session_id, channel, io)

        return await self._platform.grant(request, session_id, key, name)

    async def _read(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._platform.check_caller(request)) is not None:
            return refused
        name = self._stream(*_channel(request))
        settled = request.headers.get("x-peek-settled") == "1" and self._is_settled(name)

        return await self._platform.stream(request, name, settled=settled)

    async def _append(self, request: web.Request) -> web.StreamResponse:
        if refused := self._channel_refused(request, "Cannot append to a closed session"):
            return refused
        name = self._stream(*_channel(request))
        part_id = request.headers.get("x-part-id")
        self.part_ids.append(part_id)
        body = await request.text()
        seq: int | None = None
        if part_id is None or (name, part_id) not in self._claimed:
            [seq] = await self._platform.store(name, [_body(body, part_id)])
            self._claimed[name, part_id or ""] = seq
        if (spoilt := self._platform.strike("send", request)) is not None:
            return spoilt

        return web.json_response({"ok": True} if seq is None else {"ok": True, "seq": seq})

    async def _drain(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._platform.check_caller(request)) is not None:
            return refused
        name = self._stream(*_channel(request))
        after = int(request.query.get("afterEventId", "-1"))
        stored = [each for each in self._platform.stored(name) if each.seq_num > after]
        records = [_drained(each) for each in stored if not _is_command(each)]

        return web.json_response({"records": records})

    async def _take_input(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._platform.check_caller(request, request.match_info["run"])) is not None:
            return refused
        told = await request.json()
        name = _input_name(request.match_info["run"], request.match_info["key"])
        await self._platform.store(name, [_body(told["data"])])

        return web.json_response({"ok": True})

    async def _read_input(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._platform.check_caller(request, request.match_info["run"])) is not None:
            return refused
        name = _input_name(request.match_info["run"], request.match_info["key"])

        return await self._platform.stream(request, name)

    # --- who is meant --------------------------------------------------------------------------

    def _row(self, session_id: str) -> dict[str, Any] | None:
        """Return what is kept of the session of this id, of either form."""
        found = [row for row in self.rows.values() if row["externalId"] == session_id]

        return self.rows.get(session_id) or (found[0] if session_id and found else None)

    def _asked(self, request: web.Request) -> dict[str, Any]:
        row = self._row(request.match_info["session"])
        assert row is not None  # noqa: S101  `_checked` has refused otherwise

        return row

    def _checked(self, request: web.Request) -> web.StreamResponse | None:
        refused = self._platform.check_caller(request)
        if refused is None and self._row(request.match_info["session"]) is None:
            return web.json_response({"error": "Resource not found"}, status=404)

        return refused

    def _channel_refused(self, request: web.Request, text: str) -> web.StreamResponse | None:
        """Return the answer to whoever may not write to the channel."""
        if (refused := self._platform.check_caller(request)) is not None:
            return refused
        session_id, _, _ = _channel(request)
        row = self._row(session_id)
        if row is None and session_id.startswith("session_"):
            return web.Response(status=404, text="Session not found")
        if row is not None and row.get("closedAt"):
            return web.json_response({"ok": False, "error": text}, status=400)

        return None

    def _stream(self, session_id: str, channel: str, io: str) -> str:
        """Return the stream that either id form of a session names."""
        row = self._row(session_id)
        key = session_id if row is None else row["externalId"] or row["id"]

        return f"/sessions/{quote(key, safe='')}/{channel}/{io}"

    def _is_settled(self, name: str) -> bool:
        records = [each for each in self._platform.stored(name)[-2:] if not _is_command(each)]

        return bool(records) and ("trigger-control", "turn-complete") in records[-1].headers


def now_ms() -> int:
    """Return the wall clock's milliseconds."""
    return round(time.time() * 1000)


def _channel(request: web.Request) -> tuple[str, str, str]:
    """Return which session, channel and direction a request is about."""
    asked = request.match_info

    return asked["session"], asked.get("channel", "main"), asked["io"]


def _input_name(run_id: str, stream_id: str) -> str:
    return f"/runs/{run_id}/$trigger.input:{stream_id}"


def _body(data: Any, envelope_id: str | None = None) -> str:
    return encode_envelope(data, envelope_id or f"inp_{secrets.token_hex(6)}").decode()


def _is_command(record: "StoredRecord") -> bool:
    return bool(record.headers) and record.headers[0][0] == ""


def _drained(record: "StoredRecord") -> dict[str, Any]:
    envelope = decode_envelope(record.body) if record.body else None
    found: dict[str, Any] = {"seqNum": record.seq_num, "timestamp": record.timestamp}
    if envelope is not None:
        found |= {"data": envelope.data, "id": envelope.id}
    if record.headers:
        found["headers"] = record.headers

    return found


def _fits(row: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    wanted = {
        "type": query.get("filter[type]"),
        "taskIdentifier": query.get("filter[taskIdentifier]"),
        "externalId": query.get("filter[externalId]"),
    }
    tags = set(filter(None, query.get("filter[tags]", "").split(",")))
    status = "CLOSED" if row.get("closedAt") else "ACTIVE"

    return (
        all(value is None or row.get(name) == value for name, value in wanted.items())
        and (not tags or bool(tags & set(row["tags"])))
        and query.get("filter[status]", status) == status
    )
