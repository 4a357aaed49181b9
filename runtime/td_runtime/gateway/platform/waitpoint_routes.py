"""Waitpoints over HTTP: waits of runs, and tokens to look at and complete."""

import datetime as dt
import re
from typing import Annotated, Any, Final, Literal

import msgspec

from td_runtime.gateway.exchange import Exchange, Reply, json_reply
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.access import Access, Caller
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.bodies import read_json
from td_runtime.gateway.platform.channels import find_channel
from td_runtime.gateway.platform.names import input_stream
from td_runtime.gateway.platform.parts import Parts
from td_runtime.gateway.platform.runs import Runs
from td_runtime.gateway.platform.session_bodies import parse_date, show_date
from td_runtime.gateway.platform.sessions import Sessions, now_ms
from td_runtime.gateway.platform.waitpoints import Waitpoint, Waitpoints, new_waitpoint_id

WAIT_BYTES_MAX: Final = 10 * 1024
COMPLETE_BYTES_MAX: Final = 1024 * 1024
_UNITS_MS: Final = {
    "s": 1000,
    "m": 60_000,
    "hr": 3_600_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}

IdempotencyKey = Annotated[str, msgspec.Meta(max_length=2048)]


class Wait(msgspec.Struct, rename="camel", kw_only=True):
    """What the bodies of both kinds of wait share."""

    timeout: str | None = None
    idempotency_key: IdempotencyKey | None = None
    idempotency_key_ttl: str | None = msgspec.field(default=None, name="idempotencyKeyTTL")
    tags: str | list[str] = []
    last_seq_num: int | None = None


class InputWait(Wait, rename="camel", kw_only=True):
    """The body of POST input-streams/wait."""

    stream_id: Annotated[str, msgspec.Meta(min_length=1)]


class SessionWait(Wait, rename="camel", kw_only=True):
    """The body of POST session-streams/wait."""

    session: Annotated[str, msgspec.Meta(min_length=1)]
    io: Literal["in", "out"]


class Completion(msgspec.Struct):
    """The body of POST complete."""

    data: Any = None


class WaitpointRoutes:
    """Answers requests about waitpoints."""

    def __init__(
        self,
        *,
        access: Access,
        waitpoints: Waitpoints,
        runs: Runs,
        sessions: Sessions,
        parts: Parts,
    ) -> None:
        self._access = access
        self._waitpoints = waitpoints
        self._runs = runs
        self._sessions = sessions
        self._parts = parts

    async def wait_for_input(self, exchange: Exchange, run_id: str) -> Reply:
        """POST runs/<run>/input-streams/wait; raises RefusalError with another answer."""
        self._admit_run(exchange, run_id)
        body = await read_json(exchange, InputWait, limit=WAIT_BYTES_MAX)

        return await self._wait(run_id, input_stream(run_id, body.stream_id), body)

    async def wait_for_session(self, exchange: Exchange, run_id: str) -> Reply:
        """POST runs/<run>/session-streams/wait; raises RefusalError with another answer."""
        self._admit_run(exchange, run_id)
        body = await read_json(exchange, SessionWait, limit=WAIT_BYTES_MAX)
        channel = find_channel(self._sessions, body.session)
        if channel is None:
            return json_reply(404, {"error": "Session not found"})

        return await self._wait(run_id, channel.stream(body.io), body)

    async def handle(self, exchange: Exchange, path: list[str]) -> Reply:
        """Answer a request whose path below ``waitpoints/tokens`` is ``path``."""
        caller = self._access.identify(exchange)
        match path, exchange.method:
            case [waitpoint_id], "GET":
                return self._retrieve(caller, waitpoint_id)
            case [waitpoint_id, "complete"], "POST":
                return await self._complete(exchange, caller, waitpoint_id)
            case [_], _:
                return answers.method_not_allowed("GET")
            case [_, "complete"], _:
                return answers.method_not_allowed("POST")

        return answers.NOT_FOUND

    def _admit_run(self, exchange: Exchange, run_id: str) -> None:
        self._access.identify(exchange).require_secret()
        if exchange.method != "POST":
            raise RefusalError(answers.method_not_allowed("POST"))
        if self._runs.find(run_id) is None:
            raise RefusalError(json_reply(404, {"error": "Run not found"}))

    async def _wait(self, run_id: str, stream: str, body: Wait) -> Reply:
        now = now_ms()
        ttl = body.idempotency_key_ttl
        waitpoint, is_cached = await self._waitpoints.create(
            Waitpoint(
                id=new_waitpoint_id(),
                run_id=run_id,
                stream=stream,
                idempotency_key=body.idempotency_key,
                idempotency_expires_at=None if ttl is None else _parse_moment(ttl, now),
                tags=[body.tags] if isinstance(body.tags, str) else body.tags,
                timeout_at=None if body.timeout is None else _parse_moment(body.timeout, now),
                created_at=now,
            )
        )
        if not is_cached:
            await self._complete_if_there(waitpoint, body.last_seq_num)

        return json_reply(200, {"waitpointId": waitpoint.id, "isCached": is_cached})

    async def _complete_if_there(self, waitpoint: Waitpoint, last_seq_num: int | None) -> None:
        """Complete it at once if its record came before it: no append will do so any more."""
        start = 0 if last_seq_num is None else last_seq_num + 1
        part = await self._parts.first(waitpoint.stream, max(0, start))
        if part is None:
            return
        data = part.data
        output = data if isinstance(data, str) else msgspec.json.encode(data).decode()
        await self._waitpoints.complete(waitpoint.id, output)

    def _retrieve(self, caller: Caller, waitpoint_id: str) -> Reply:
        caller.require("read", "waitpoints", [waitpoint_id])
        waitpoint = self._waitpoints.find(waitpoint_id)
        if waitpoint is None:
            return answers.NOT_FOUND

        return json_reply(200, _show(waitpoint))

    async def _complete(self, exchange: Exchange, caller: Caller, waitpoint_id: str) -> Reply:
        caller.require("write", "waitpoints", [waitpoint_id])
        body = await read_json(exchange, Completion, limit=COMPLETE_BYTES_MAX)
        waitpoint = self._waitpoints.find(waitpoint_id)
        if waitpoint is None:
            return json_reply(404, {"error": "Waitpoint not found"})
        if waitpoint.status == "WAITING":
            output = None if body.data is None else msgspec.json.encode(body.data).decode()
            await self._waitpoints.complete(waitpoint_id, output)

        return json_reply(200, {"success": True})


def _show(waitpoint: Waitpoint) -> dict[str, object]:
    status = waitpoint.status
    shown: dict[str, object] = {
        "id": waitpoint.id,
        "url": f"/api/v1/waitpoints/tokens/{waitpoint.id}/complete",
        "status": status,
        "idempotencyKey": waitpoint.idempotency_key,
        "idempotencyKeyExpiresAt": show_date(waitpoint.idempotency_expires_at),
        "timeoutAt": show_date(waitpoint.timeout_at),
        "completedAt": show_date(waitpoint.completed_at),
        "createdAt": show_date(waitpoint.created_at),
    }
    if status == "TIMED_OUT":
        shown |= _show_timeout(waitpoint)
    elif waitpoint.output is not None:
        shown |= {"output": waitpoint.output, "outputType": "application/json"}
    if status != "WAITING":
        shown["outputIsError"] = status == "TIMED_OUT"

    return {k: v for k, v in shown.items() if v is not None} | {"tags": waitpoint.tags}


def _show_timeout(waitpoint: Waitpoint) -> dict[str, object]:
    when = show_date(waitpoint.timeout_at)
    error = {
        "code": "TRIGGER_WAITPOINT_TIMEOUT",
        "message": f"Waitpoint timed out at {when}",
    }

    return {
        "completedAt": when,
        "output": msgspec.json.encode(error).decode(),
        "outputType": "application/json",
    }


def _parse_moment(text: str, now: int) -> int:
    """A moment, from a time to go (``30s``, ``1h30m``, ``2d``) or an ISO 8601 date."""
    parts = re.findall(r"([0-9]{1,9})(hr|[smhdw])", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return now + sum(int(number) * _UNITS_MS[unit] for number, unit in parts)
    try:
        dt.datetime.fromisoformat(text)
        return parse_date(text)
    except ValueError:
        raise RefusalError(json_reply(400, {"error": f"Invalid time: {text}"})) from None
