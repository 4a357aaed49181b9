"""Sessions over HTTP: ``/api/v1/sessions`` and what is below."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from td_runtime.gateway.exchange import Exchange, Reply, json_reply
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.access import Access, Caller
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.bodies import read_json
from td_runtime.gateway.platform.names import session_stream
from td_runtime.gateway.platform.parts import Parts
from td_runtime.gateway.platform.runs import Runs
from td_runtime.gateway.platform.session_bodies import (
    CloseSession,
    CreateSession,
    EndRun,
    HandOver,
    UpdateSession,
    show,
    show_created,
)
from td_runtime.gateway.platform.session_queries import parse_filter, parse_page
from td_runtime.gateway.platform.session_runs import SessionRuns
from td_runtime.gateway.platform.sessions import Session, Sessions

CREATE_BYTES_MAX: Final = 32 * 1024
UPDATE_BYTES_MAX: Final = 32 * 1024
CLOSE_BYTES_MAX: Final = 1024
TOKEN_LIFE_S: Final = 3600.0


class SessionRoutes:
    """Answers requests about sessions."""

    def __init__(
        self,
        *,
        access: Access,
        sessions: Sessions,
        session_runs: SessionRuns,
        runs: Runs,
        parts: Parts,
    ) -> None:
        self._access = access
        self._sessions = sessions
        self._session_runs = session_runs
        self._runs = runs
        self._parts = parts

    async def handle(self, exchange: Exchange, path: list[str]) -> Reply:
        """Answer a request whose path below ``sessions`` is ``path``.

        Raises:
            RefusalError: With the answer.
        """
        caller = self._access.identify(exchange)
        match path, exchange.method:
            case [], "POST":
                return await self._create(exchange, caller)
            case [], "GET":
                return self._list(exchange, caller)
            case [], _:
                return answers.method_not_allowed("GET, POST")
            case [ref], "GET":
                return self._retrieve(caller, ref)
            case [ref], "PATCH":
                return await self._update(exchange, caller, ref)
            case [_], _:
                return answers.method_not_allowed("GET, PATCH")
            case [_, "snapshot-url"], "GET" | "PUT":
                caller.require_secret()
                return answers.NO_OBJECT_STORE
            case [ref, action], "POST":
                return await self._act(exchange, caller, ref, action)
            case [_, "close" | "end-and-continue" | "end"], _:
                return answers.method_not_allowed("POST")

        return answers.NOT_FOUND

    async def _create(self, exchange: Exchange, caller: Caller) -> Reply:
        body = await read_json(exchange, CreateSession, limit=CREATE_BYTES_MAX)
        if not caller.may("write", "tasks", [body.task_identifier]):
            caller.require("write", "sessions")
        caller.refuse_one_time()

        def is_own(there: Session) -> bool:
            return _is_own(caller, body.task_identifier, there)

        session, is_new = await self._sessions.create(body.to_session(), may_change=is_own)
        if not is_own(session):  # it was there already: it would be taken over
            raise RefusalError(answers.SCOPE_MISSING)
        if session.is_closed or session.is_expired:
            return _refuse_ended(session)
        try:
            session = await self._ensure_run(session)
        except RefusalError:
            if is_new:  # nobody has its id, and a second try should not find it
                await self._sessions.discard(session.id)
            raise
        token = self._access.issue(
            (f"read:sessions:{session.key}", f"write:sessions:{session.key}"), life_s=TOKEN_LIFE_S
        )

        return json_reply(
            201 if is_new else 200, show_created(session, token=token, is_cached=not is_new)
        )

    async def _ensure_run(self, session: Session) -> Session:
        from td_runtime.control import ControlRefusedError, NotRunningError

        try:
            return await self._session_runs.ensure(session)
        except ControlRefusedError as error:
            raise RefusalError(json_reply(422, {"error": error.what})) from error
        except NotRunningError as error:
            raise RefusalError(answers.no_supervisor(error.advice)) from error

    def _list(self, exchange: Exchange, caller: Caller) -> Reply:
        caller.require("read", "sessions")
        query = exchange.query
        page = self._sessions.page(parse_filter(query), **parse_page(query))
        pagination = {
            name: cursor
            for name, cursor in (("next", page.following), ("previous", page.previous))
            if cursor is not None
        }

        return json_reply(
            200, {"data": [show(one) for one in page.sessions], "pagination": pagination}
        )

    def _retrieve(self, caller: Caller, ref: str) -> Reply:
        session = self._sessions.find(ref)
        caller.require("read", "sessions", _ids(ref, session))
        if session is None:
            return answers.NOT_FOUND

        return json_reply(200, show(session))

    async def _update(self, exchange: Exchange, caller: Caller, ref: str) -> Reply:
        there = self._sessions.find(ref)
        caller.require("admin", "sessions", _ids(ref, there))
        body = await read_json(exchange, UpdateSession, limit=UPDATE_BYTES_MAX)
        if there is None:
            return answers.RESOURCE_NOT_FOUND
        if body.external_id is not msgspec.UNSET and body.external_id != there.external_id:
            return json_reply(422, {"error": "externalId cannot be changed"})
        changes: dict[str, Any] = {
            name: value
            for name, value in (("tags", body.tags), ("metadata", body.metadata))
            if value is not msgspec.UNSET
        }
        session = await self._sessions.update(there.id, **changes)

        return json_reply(200, show(session or there))

    async def _act(self, exchange: Exchange, caller: Caller, ref: str, action: str) -> Reply:
        session = self._sessions.find(ref)
        match action:
            case "close":
                caller.require("admin", "sessions", _ids(ref, session))
                return await self._close(exchange, session)
            case "end-and-continue":
                caller.require("write", "sessions", _ids(ref, session))
                return await self._hand_over(exchange, session)
            case "end":
                caller.require_secret()
                return await self._end_run(exchange, session)

        return answers.NOT_FOUND

    async def _close(self, exchange: Exchange, session: Session | None) -> Reply:
        body = await read_json(exchange, CloseSession, limit=CLOSE_BYTES_MAX)
        if session is None:
            return answers.RESOURCE_NOT_FOUND
        closed = await self._sessions.close_session(session.id, body.reason)

        return json_reply(200, show(closed or session))

    async def _hand_over(self, exchange: Exchange, session: Session | None) -> Reply:
        body = await read_json(exchange, HandOver, limit=CLOSE_BYTES_MAX)

        return await self._swap(
            session,
            body.calling_run_id,
            lambda session: self._session_runs.hand_over(session, body.calling_run_id),
        )

    async def _end_run(self, exchange: Exchange, session: Session | None) -> Reply:
        """Ours alone: a run that ends leaves no message behind."""
        body = await read_json(exchange, EndRun, limit=CLOSE_BYTES_MAX)
        start = 0 if body.cursor is None else body.cursor + 1

        async def end(session: Session) -> tuple[str | None, bool]:
            stream = session_stream(session.key, "in")

            async def has_more() -> bool:
                return await self._parts.first(stream, start) is not None

            return await self._session_runs.end(session, body.calling_run_id, has_more)

        return await self._swap(session, body.calling_run_id, end)

    async def _swap(
        self,
        session: Session | None,
        calling_run_id: str,
        swap: Callable[[Session], Awaitable[tuple[str | None, bool]]],
    ) -> Reply:
        from td_runtime.control import ControlRefusedError, NotRunningError

        if session is None:
            return answers.RESOURCE_NOT_FOUND
        if session.is_closed or session.is_expired:
            return json_reply(400, {"error": _ended_text(session)})
        if self._runs.find(calling_run_id) is None:
            return json_reply(404, {"error": "Run not found"})
        try:
            run_id, swapped = await swap(session)
        except ControlRefusedError as error:
            return json_reply(422, {"error": error.what})
        except NotRunningError as error:
            return answers.no_supervisor(error.advice)

        return json_reply(200, {"runId": run_id, "swapped": swapped})


def _is_own(caller: Caller, task: str, session: Session) -> bool:
    """Whether a session is of this task, or of one that the caller may start sessions of."""
    return (
        session.task_identifier == task
        or caller.may("write", "tasks", [session.task_identifier])
        or caller.may("write", "sessions")
    )


def _ids(ref: str, session: Session | None) -> set[str]:
    """Every id that a token may name the session by."""
    known = () if session is None else (session.id, session.external_id)

    return {ref, *(one for one in known if one is not None)}


def _ended_text(session: Session) -> str:
    return "Session is closed" if session.is_closed else "Session is expired"


def _refuse_ended(session: Session) -> Reply:
    code = "session_closed" if session.is_closed else "session_expired"

    return json_reply(
        409,
        {"error": _ended_text(session), "code": code, "closedReason": session.closed_reason},
        # Upstream's client takes every 409 for a conflict that may pass; this one never does.
        [("x-should-retry", "false")],
    )
