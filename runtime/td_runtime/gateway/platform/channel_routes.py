"""The channels of sessions: ``/realtime/v1/sessions/<session>/<in or out>`` and what is below."""

from __future__ import annotations

import time
from typing import Final, Literal, cast

from td_runtime.gateway.errors import RecordsInvalidError, StoreUnavailableError
from td_runtime.gateway.exchange import (
    Exchange,
    Receive,
    Reply,
    Scope,
    Send,
    json_reply,
    text_reply,
)
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.platform import answers
from td_runtime.gateway.platform.access import Access, Caller
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.bodies import read_bytes
from td_runtime.gateway.platform.channels import MAIN, Channel, find_channel, is_channel_name
from td_runtime.gateway.platform.claims import PartClaims
from td_runtime.gateway.platform.faults import Faults
from td_runtime.gateway.platform.forgery import strip_forged_source
from td_runtime.gateway.platform.issuer import Issuer
from td_runtime.gateway.platform.mints import MintLog
from td_runtime.gateway.platform.parts import Parts, new_part_id
from td_runtime.gateway.platform.session_runs import SessionRuns
from td_runtime.gateway.platform.sessions import Session, Sessions
from td_runtime.gateway.platform.subscription import Subscriptions, parse_cursor, parse_wait
from td_runtime.gateway.platform.tokens import SENDER_OPS, TOKEN_LIFE_S, TOKEN_OPS
from td_runtime.gateway.platform.waitpoints import Waitpoints

PREFIX: Final = "/realtime/v1/sessions/"
APPEND_BYTES_MAX: Final = 1024 * 1024
RECORDS_BYTES_MAX: Final = 16 * 1024 * 1024
PEEKED_RECORDS: Final = 2
SETTLED: Final = ("trigger-control", "turn-complete")

Io = Literal["in", "out"]


class ChannelRoutes:
    """ASGI application below ``/realtime/v1/sessions``."""

    def __init__(
        self,
        *,
        access: Access,
        sessions: Sessions,
        session_runs: SessionRuns,
        issuer: Issuer,
        parts: Parts,
        subscriptions: Subscriptions,
        waitpoints: Waitpoints,
        mints: MintLog,
        faults: Faults,
        journal: Journal,
    ) -> None:
        self._access = access
        self._sessions = sessions
        self._session_runs = session_runs
        self._issuer = issuer
        self._parts = parts
        self._subscriptions = subscriptions
        self._waitpoints = waitpoints
        self._mints = mints
        self._faults = faults
        self._journal = journal
        self._claims = PartClaims()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send)
        path = exchange.segments(PREFIX)
        # S/channels/name/io is S/io of another channel.
        name = MAIN
        if len(path) in (4, 5) and path[1] == "channels":
            name, path = path[2], [path[0], *path[3:]]
        if exchange.method == "PUT" and len(path) == 2:
            return await self._record_mint(exchange, path, name)

        return await self._pass(exchange, path, name)

    async def _record_mint(self, exchange: Exchange, path: list[str], name: str) -> None:
        ref, io = path
        unknown = Channel(key=ref, name=name, ids=frozenset(), session=None)
        slot = (find_channel(self._sessions, ref, name) or unknown).slot(io)
        with self._mints.record(slot) as mint:
            exchange.on_answer = mint.finish
            async with exchange.watch(mint.abort):
                await self._pass(exchange, path, name)

    async def _pass(self, exchange: Exchange, path: list[str], name: str) -> None:
        async def handle(exchange: Exchange) -> None:
            await answers.answer(exchange, lambda: self._handle(exchange, path, name))

        await self._faults.pass_through("control-plane", exchange, handle)

    async def _handle(self, exchange: Exchange, path: list[str], name: str) -> Reply | None:
        caller = self._access.identify(exchange)
        match path:
            case [ref, io] if ref:
                _check_names(io, name)
                return await self._channel(exchange, caller, ref, cast("Io", io), name)
            case [ref, io, "append"] if ref:
                _check_names(io, name)
                if exchange.method != "POST":
                    return answers.method_not_allowed("POST")
                return await self._append(exchange, caller, ref, cast("Io", io), name)
            case [ref, io, "records"] if ref:
                _check_names(io, name)
                if exchange.method != "GET":
                    return answers.method_not_allowed("GET")
                return await self._drain(exchange, caller, ref, cast("Io", io), name)

        return answers.NOT_FOUND

    async def _channel(
        self, exchange: Exchange, caller: Caller, ref: str, io: Io, name: str
    ) -> Reply | None:
        match exchange.method:
            case "PUT":
                return await self._initialise(caller, ref, io, name)
            case "HEAD":
                self._read_channel(caller, ref, name)
                return Reply(200, headers=(("X-Last-Chunk-Index", "0"),))
            case "GET":
                await self._subscribe(exchange, caller, ref, io, name)
                return None

        return answers.method_not_allowed("PUT, GET, HEAD")

    async def _initialise(self, caller: Caller, ref: str, io: Io, name: str) -> Reply:
        if io == "out" and not caller.is_secret:
            return answers.SESSION_OUT_PUT
        channel = find_channel(self._sessions, ref, name)
        caller.require("write", "sessions", channel.ids if channel else (ref,))
        if channel is None:
            return answers.SESSION_NOT_FOUND
        ended = _ended(channel.session)
        if ended is not None:
            return text_reply(400, f"Cannot initialize a channel on {ended} session")

        return await self._issuer.issue(
            slot=channel.slot(io),
            stream=channel.stream(io),
            ops=TOKEN_OPS if caller.is_secret else SENDER_OPS,
            life_s=min(TOKEN_LIFE_S, caller.expires_at - time.time()),
        )

    async def _append(
        self, exchange: Exchange, caller: Caller, ref: str, io: Io, name: str
    ) -> Reply:
        if io == "out" and not caller.is_secret:
            return answers.SESSION_OUT_APPEND
        channel = find_channel(self._sessions, ref, name)
        caller.require("write", "sessions", channel.ids if channel else (ref,))
        body = await read_bytes(exchange, limit=APPEND_BYTES_MAX)
        if channel is None:
            return answers.not_appended(404, "Session not found")
        refusal = _refuse_ended(channel.session)
        if refusal is not None:
            return refusal
        text = body.decode("utf-8", "replace") if io == "out" else _read_message(body)
        part_id = exchange.headers.get("x-part-id")
        if io == "out" or channel.name != MAIN or channel.session is None:
            return await self._store(channel.stream(io), text, part_id)

        return await self._deliver(channel.session, channel.stream(io), text, part_id)

    async def _deliver(
        self, session: Session, stream: str, text: str, part_id: str | None
    ) -> Reply:
        """Store a message to the agent, and have an agent there."""
        was_live = self._session_runs.is_live(session)
        if not was_live:
            await self._ensure_run(session)
        reply = await self._store(stream, text, part_id)
        if was_live:  # and may have ended before it could see the message
            await self._ensure_run(session)

        return reply

    async def _ensure_run(self, session: Session) -> None:
        """Have somebody there to read the message; without, it waits in the stream."""
        from td_runtime.errors import TdRuntimeError

        if self._session_runs.is_live(session):
            return
        try:
            await self._session_runs.ensure(session)
        except (TdRuntimeError, StoreUnavailableError) as error:
            self._journal.write(
                "error", "session.run_failed", session_id=session.id, error=str(error)
            )

    async def _store(self, stream: str, text: str, part_id: str | None) -> Reply:
        if part_id is not None and not self._claims.claim(stream, part_id):
            return json_reply(200, {"ok": True})
        try:
            seq = await self._parts.append(stream, text, part_id or new_part_id())
        except (RecordsInvalidError, StoreUnavailableError) as error:
            if part_id is not None:
                self._claims.release(stream, part_id)
            status = 413 if isinstance(error, RecordsInvalidError) else 500
            return answers.not_appended(status, str(error))
        await self._waitpoints.complete_stream(stream, text)

        return json_reply(200, {"ok": True, "seq": seq})

    async def _subscribe(
        self, exchange: Exchange, caller: Caller, ref: str, io: Io, name: str
    ) -> None:
        channel = self._read_channel(caller, ref, name)
        wait_s = parse_wait(exchange)
        stream = channel.stream(io)
        headers: tuple[tuple[str, str], ...] = ()
        is_peeking = io == "out" and exchange.headers.get("x-peek-settled") == "1"
        if is_peeking and await self._is_settled(stream):
            wait_s, headers = 0, (("X-Session-Settled", "true"),)
        await self._subscriptions.send(exchange, stream, wait_s, headers)

    async def _is_settled(self, stream: str) -> bool:
        """Whether the newest record says that a turn is complete, and nobody writes now."""
        try:
            newest = await self._parts.newest(stream, PEEKED_RECORDS)
        except StoreUnavailableError:
            return False

        return newest is not None and SETTLED in newest.headers

    async def _drain(
        self, exchange: Exchange, caller: Caller, ref: str, io: Io, name: str
    ) -> Reply:
        channel = self._read_channel(caller, ref, name)
        after = exchange.query.get("afterEventId", "")
        if after and not (after.isascii() and after.isdecimal()):
            return answers.query_error("afterEventId must be a sequence number")
        walk = self._parts.walk(
            channel.stream(io), parse_cursor(after), bytes_max=RECORDS_BYTES_MAX
        )
        # What is beyond the limit the client asks for with the last id that it got.
        records = [part async for part in walk]

        return json_reply(200, {"records": records})

    def _read_channel(self, caller: Caller, ref: str, name: str) -> Channel:
        channel = find_channel(self._sessions, ref, name)
        caller.require("read", "sessions", channel.ids if channel else (ref,))
        if channel is None:
            raise RefusalError(answers.NOT_FOUND)

        return channel


def _check_names(io: str, name: str) -> None:
    if io not in ("in", "out"):
        raise RefusalError(answers.params_error("io must be `in` or `out`"))
    if not is_channel_name(name):
        raise RefusalError(
            answers.params_error("a channel's name is 1 to 128 of letters, digits, `.`, `_`, `-`")
        )


def _read_message(body: bytes) -> str:
    try:
        return strip_forged_source(body.decode("utf-8", "replace"))
    except RecordsInvalidError as error:
        raise RefusalError(answers.not_appended(413, str(error))) from None


def _ended(session: Session | None) -> str | None:
    if session is not None and session.is_closed:
        return "a closed"
    if session is not None and session.is_expired:
        return "an expired"

    return None


def _refuse_ended(session: Session | None) -> Reply | None:
    ended = _ended(session)
    if ended is None or session is None:
        return None
    refusal = {"ok": False, "error": f"Cannot append to {ended} session"}
    if session.is_closed:
        refusal |= {"code": "session_closed", "closedReason": session.closed_reason}

    return json_reply(400, refusal)
