"""
Test task code without a runtime: a control plane and a stream store in memory, over real HTTP.

```python
from td_worker.testing import run_platform

def test_counts_to_three():
    with run_platform() as platform, platform.execution(run_id="run_1"):
        my_task({"to": 3})                       # or asyncio.run(my_async_task({"to": 3}))
    assert platform.chunks("run_1", "progress") == [1, 2, 3]
```

Leaving `execution` waits for the streams, as the end of a run does; but `asyncio.run` cancels pipes
that nobody has awaited by its own end, which a worker would not. The platform listens on loopback,
counts every PUT, and misbehaves on request: it refuses tokens, answers with any status, drops
connections before or after it has stored a batch, and holds answers back.
"""

# msgspec reads the annotations of these classes, so they must not be postponed.
import asyncio
import contextlib
import secrets
import threading
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import msgspec
from aiohttp import web

from td_sharedcache import CredentialCache
from td_sharedcache.testing import InMemoryCredentialCache
from td_worker.context import (
    AttemptInfo,
    Execution,
    Messenger,
    RunInfo,
    TaskInfo,
    Unsupervised,
    executing,
)
from td_worker.control_plane import ControlPlane
from td_worker.stream_store import StreamStore
from td_worker.streams.client import StreamClient
from td_worker.streams.envelope import decode_envelope
from td_worker.streams.policy import StreamLimits
from td_worker.testing_sessions import FakeSessions, now_ms

__all__ = [
    "FakePlatform",
    "FakeSessions",
    "Fault",
    "LoopThread",
    "StoredRecord",
    "Where",
    "run_platform",
]

T = TypeVar("T")

Where = Literal["mint", "append", "read", "send"]
"""Which of its answers a fault spoils."""

_BASIN: Final = "fake-basin"
_DRAIN_S: Final = 60.0


class LoopThread:
    """An event loop in a thread of its own, as a worker's runtime loop is; a context manager."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="td-test-loop", daemon=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def __enter__(self) -> "LoopThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(_cancel_all(self.loop))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """One record as S2 would hold it."""

    seq_num: int
    body: str
    headers: tuple[tuple[str, str], ...] = ()
    timestamp: int = 0


@dataclass(slots=True, kw_only=True)
class Fault:
    """How the next `times` answers of one kind go wrong; see `FakePlatform.spoil`."""

    where: Where
    times: int = 1
    status: int | None = None
    """Answered instead; None drops the connection."""
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    stored: bool = False
    """The work is done all the same, only its answer is lost."""


class _Appended(msgspec.Struct):
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class _Append(msgspec.Struct):
    records: list[_Appended]


class FakePlatform:
    """
    A control plane and a stream store in memory; made by `run_platform`.

    Attributes:
        url: Its origin.
        secret_key: What its control plane wants as a bearer token.
        sessions: Its sessions and input streams.
        puts: How many credentials it minted, by `(run id, stream key)`, or by `(session id, io)`
            with the session's id as it was asked for and `channels/<name>/` before the io of a
            named channel.
        appends: How many appends it stored.
        finished: Ids of runs that are over: their streams cannot be opened any more.
        unknown: Ids of runs that it does not know; it knows all others.
    """

    def __init__(self, thread: LoopThread) -> None:
        self.url = ""
        self.secret_key = "tr_dev_" + secrets.token_hex(12)
        self.puts: Counter[tuple[str, str]] = Counter()
        self.appends = 0
        self.finished: set[str] = set()
        self.unknown: set[str] = set()
        self.flush_interval_ms = 20
        self.stream_version = "v2"
        self._thread = thread
        self._records: defaultdict[str, list[StoredRecord]] = defaultdict(list)
        self._tokens: set[str] = set()
        self._faults: list[Fault] = []
        self._grown = asyncio.Condition()
        self._open = asyncio.Event()
        self._open.set()
        self.arrived = threading.Event()
        """Set by every append that arrives, also by one that is then held back or spoilt."""
        self.sessions = FakeSessions(self)
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.1)

    # --- what tests look at and turn -----------------------------------------------------------

    def records(self, run_id: str, key: str = "default") -> list[StoredRecord]:
        """Return what the stream holds, duplicates included."""
        return self.stored(_stream_name(run_id, key))

    def chunks(self, run_id: str, key: str = "default") -> list[Any]:
        """Return what a reader sees: each envelope id once, in order."""
        found: dict[Any, Any] = {}
        for record in self.records(run_id, key):
            envelope = decode_envelope(record.body)
            if envelope is not None:
                found.setdefault(envelope.id, envelope.data)

        return list(found.values())

    def put_records(self, run_id: str, key: str, records: list[StoredRecord]) -> None:
        """Put records into a stream as somebody else would have written them."""
        self._thread.run(self._extend(_stream_name(run_id, key), records))

    def stored(self, name: str) -> list[StoredRecord]:
        """Return what the stream of this name holds; for `FakeSessions`."""
        return list(self._records[name])

    def put_bodies(self, name: str, bodies: list[str], *, timestamp: int | None = None) -> None:
        """Put records into the stream of this name; for `FakeSessions`."""
        self._thread.run(self.store(name, bodies, timestamp=timestamp))

    def revoke_tokens(self) -> None:
        """Refuse, from now on, every token handed out so far."""
        self._tokens.clear()

    def spoil(self, where: Where, **fault: Any) -> None:
        """Have the next answers go wrong; the arguments are the fields of `Fault`."""
        self._faults.append(Fault(where=where, **fault))

    def heal(self) -> None:
        """Forget all faults that have not struck yet."""
        self._faults.clear()

    @contextmanager
    def holding_appends(self) -> Iterator[None]:
        """Answer no append inside the block; what waits is answered when it is left."""
        self._thread.loop.call_soon_threadsafe(self._open.clear)
        try:
            yield
        finally:
            self._thread.loop.call_soon_threadsafe(self._open.set)

    # --- what tests run ------------------------------------------------------------------------

    @contextmanager
    def client(
        self, *, limits: StreamLimits | None = None, cache: CredentialCache | None = None
    ) -> Iterator[StreamClient]:
        """Yield a stream client whose runtime loop is the platform's."""
        control_plane = ControlPlane(self.url, self.secret_key)
        own_cache = cache or InMemoryCredentialCache(control_plane)
        store = StreamStore()
        client = StreamClient(
            self._thread.loop,
            cache=own_cache,
            store=store,
            control_plane=control_plane,
            limits=limits,
        )
        try:
            yield client
        finally:
            for ending in (client.close(), store.close(), control_plane.close()):
                self._thread.run(ending)
            own_cache.close()

    @contextmanager
    def execution(
        self,
        *,
        run_id: str = "run_test",
        parent_id: str | None = None,
        root_id: str | None = None,
        attempt: int = 1,
        task_id: str = "test",
        limits: StreamLimits | None = None,
        messenger: Messenger | None = None,
    ) -> Iterator[Execution]:
        """
        Let the block be a task's code; on leaving it, its streams are drained.

        `messenger` is asked for other runs, and told when the block waits for input.

        `execution.opened.records_lost` then says how many records were lost.
        """
        with self.client(limits=limits) as client:
            execution = Execution(
                run=RunInfo(id=run_id, parent_id=parent_id, root_id=root_id),
                attempt=AttemptInfo(number=attempt),
                task=TaskInfo(id=task_id),
                streams=client,
                messenger=messenger or Unsupervised(),
            )
            try:
                with executing(execution):
                    yield execution
            finally:
                execution.tails.close()
            self._thread.run(client.drain(execution, _DRAIN_S))

    # --- the server ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close everything."""
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_put("/realtime/v1/streams/{run}/self/{key}", self._mint)
        app.router.add_get("/realtime/v1/streams/{run}/{key}", self._read)
        app.router.add_post("/v1/streams/{stream}/records", self._append)
        app.router.add_get("/v1/streams/{stream}/records/tail", self._tail)
        app.router.add_get("/platform/v1/ping", self._ping)
        app.router.add_post("/api/v1/auth/jwt/claims", self._claims)
        self.sessions.add_routes(app)

        return app

    async def _mint(self, request: web.Request) -> web.StreamResponse:
        run_id, key = request.match_info["run"], request.match_info["key"]
        if (refused := self.check_caller(request, run_id)) is not None:
            return refused
        if run_id in self.finished:
            text = "Cannot initialize a realtime stream on a completed run"
            return web.Response(status=400, text=text)

        return await self.grant(request, run_id, key, _stream_name(run_id, key))

    async def grant(
        self, request: web.Request, owner: str, key: str, name: str
    ) -> web.StreamResponse:
        """Answer a mint for the stream of this name."""
        self.puts[owner, key] += 1
        if (spoilt := self.strike("mint", request)) is not None:
            return spoilt
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        headers = {
            "X-S2-Access-Token": token,
            "X-S2-Basin": _BASIN,
            "X-S2-Stream-Name": name,
            "X-S2-Flush-Interval-Ms": str(self.flush_interval_ms),
            "X-S2-Max-Retries": "10",
            "X-S2-Endpoint": f"{self.url}/v1",
        }
        if self.stream_version == "v1":
            headers = {}

        return web.json_response({"version": self.stream_version}, status=202, headers=headers)

    async def _append(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.arrived.set()
        await self._open.wait()
        if (refused := self._check_token(request)) is not None:
            return refused
        fault = self._next_fault("append")
        if fault is not None and not fault.stored:
            return self._spoil(fault, request)
        name = request.match_info["stream"]
        start = len(self._records[name])
        appended = msgspec.json.decode(body, type=_Append).records
        if request.headers.get("s2-format") == "base64":
            appended = [_from_base64(record) for record in appended]
        await self._extend(
            name,
            [
                StoredRecord(seq_num=start + n, body=record.body, headers=record.headers)
                for n, record in enumerate(appended)
            ],
        )
        self.appends += 1
        if fault is not None:
            return self._spoil(fault, request)
        end = _position(start + len(appended))

        return web.json_response({"start": _position(start), "end": end, "tail": end})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._check_token(request)) is not None:
            return refused
        tail = _position(len(self._records[request.match_info["stream"]]))

        return web.json_response({"tail": tail})

    async def _read(self, request: web.Request) -> web.StreamResponse:
        run_id, key = request.match_info["run"], request.match_info["key"]
        if (refused := self.check_caller(request, run_id)) is not None:
            return refused

        return await self.stream(request, _stream_name(run_id, key))

    async def stream(
        self, request: web.Request, name: str, *, settled: bool = False
    ) -> web.StreamResponse:
        """Answer a subscription to the stream of this name."""
        if (spoilt := self.strike("read", request)) is not None:
            return spoilt
        last = request.headers.get("Last-Event-ID", "")
        seq = int(last) + 1 if last.isdecimal() else 0
        headers = {"content-type": "text/event-stream", "X-Stream-Version": "v2"}
        if settled:
            headers["X-Session-Settled"] = "true"
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        patience = 0 if settled else float(request.headers.get("Timeout-Seconds", "60"))
        with contextlib.suppress(ConnectionError, TimeoutError):
            while True:
                seq = await self._send_batch(response, name, seq, patience)
        with contextlib.suppress(ConnectionError):
            await response.write(b"data: [DONE]\n\n")

        return response

    async def _claims(self, request: web.Request) -> web.StreamResponse:
        refused = self.check_caller(request)

        return refused or web.json_response({"sub": "env_fake", "pub": True})

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        refused = self.check_caller(request)

        return refused or web.json_response({"ok": True})

    async def _send_batch(
        self, response: web.StreamResponse, name: str, seq: int, patience: float
    ) -> int:
        """Send what follows `seq`, once there is something; return where to go on."""
        if len(self._records[name]) <= seq:
            async with asyncio.timeout(patience), self._grown:
                await self._grown.wait_for(lambda: len(self._records[name]) > seq)
        records = self._records[name][seq : seq + 1000]
        batch = msgspec.json.encode({"records": records})
        event_id = f"{records[-1].seq_num},{len(records)},{len(batch)}"
        await response.write(b"event: batch\nid: %s\ndata: %s\n\n" % (event_id.encode(), batch))

        return seq + len(records)

    async def store(
        self, name: str, bodies: list[str], *, timestamp: int | None = None
    ) -> list[int]:
        """Append records to the stream of this name; return their numbers."""
        start = len(self._records[name])
        at = now_ms() if timestamp is None else timestamp
        records = [
            StoredRecord(seq_num=start + n, body=body, timestamp=at)
            for n, body in enumerate(bodies)
        ]
        await self._extend(name, records)

        return [record.seq_num for record in records]

    async def _extend(self, name: str, records: list[StoredRecord]) -> None:
        async with self._grown:
            self._records[name].extend(records)
            self._grown.notify_all()

    def check_caller(self, request: web.Request, run_id: str = "") -> web.Response | None:
        """Return the answer to whoever may not ask, or asks for what is unknown."""
        if request.headers.get("authorization") != f"Bearer {self.secret_key}":
            return web.json_response({"error": "Invalid or Missing API key"}, status=401)
        if run_id in self.unknown:
            return web.Response(status=404, text="Run not found")

        return None

    def _check_token(self, request: web.Request) -> web.Response | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self._tokens:
            problem = {"code": "authn", "message": "the access token is not valid"}
            return web.json_response(problem, status=401)
        if request.headers.get("s2-basin") != _BASIN:
            problem = {"code": "bad_header", "message": "s2-basin"}
            return web.json_response(problem, status=400)

        return None

    def strike(self, where: Where, request: web.Request) -> web.StreamResponse | None:
        """Return the answer of a fault, if one is to strike here."""
        fault = self._next_fault(where)

        return self._spoil(fault, request) if fault is not None else None

    def _next_fault(self, where: Where) -> Fault | None:
        fault = next((fault for fault in self._faults if fault.where == where), None)
        if fault is None:
            return None
        fault.times -= 1
        if fault.times <= 0:
            self._faults.remove(fault)

        return fault

    def _spoil(self, fault: Fault, request: web.Request) -> web.StreamResponse:
        if fault.status is not None:
            return web.Response(status=fault.status, text=fault.text, headers=fault.headers)
        if request.transport is not None:
            request.transport.abort()

        return web.Response(status=500)


async def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """End what is still under way, as answers to clients that have gone; it must be alone."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def run_platform() -> Iterator[FakePlatform]:
    """Yield a platform that answers; its server and its loop are gone when the block is left."""
    with LoopThread() as thread:
        platform = thread.run(_make(thread))
        try:
            yield platform
        finally:
            thread.run(platform.stop())


async def _make(thread: LoopThread) -> FakePlatform:
    platform = FakePlatform(thread)
    await platform.start()

    return platform


def _from_base64(record: _Appended) -> _Appended:
    """Return a record's texts; a body that is none, as a trim's, with a letter for each byte."""
    headers = tuple((b64decode(n).decode(), b64decode(v).decode()) for n, v in record.headers)
    body = b64decode(record.body)

    return _Appended(body=body.decode("latin-1" if headers else "utf-8"), headers=headers)


def _stream_name(run_id: str, key: str) -> str:
    return f"/runs/{run_id}/{key}"


def _position(seq_num: int) -> dict[str, int]:
    return {"seq_num": seq_num, "timestamp": 0}
