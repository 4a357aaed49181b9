"""The runtime thread of a worker: a second loop for messages, credentials and appenders."""

import asyncio
import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any, Final, Protocol

import msgspec
import structlog

from td_sharedcache import CacheEvent, CredentialCache, Notice, Slot
from td_worker.channel import Channel
from td_worker.control_plane import ControlPlane
from td_worker.errors import TriggerRefusedError
from td_worker.executor import Limits
from td_worker.heartbeat import Deadlines, Heartbeat, Late
from td_worker.messages import (
    MAX_FRAME,
    Assign,
    AssignedRun,
    CancelRun,
    ChildOutcome,
    ChildrenDone,
    ChildrenPostponed,
    Drain,
    Drained,
    FromSupervisor,
    InterruptRun,
    Leaving,
    NoticeSent,
    Outcomes,
    Overdue,
    Ping,
    Pong,
    Ready,
    Resumed,
    RunOutcome,
    Stalled,
    Suspended,
    Trigger,
    Triggered,
    TriggerItem,
    TriggerRefused,
    Welcome,
    encode_frame,
    parts,
)
from td_worker.stream_store import StreamStore
from td_worker.streams.client import StreamClient
from td_worker.task import TaskSpec

__all__ = ["RuntimeThread", "WorkerSettings"]

log = structlog.get_logger()

_decoder: Final = msgspec.msgpack.Decoder(FromSupervisor)


def _attach_nothing(loop: asyncio.AbstractEventLoop) -> None:
    """There is no captured output to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker is told before it starts; holds no secret."""

    number: int
    """Its place among the workers, from 1; a restarted worker keeps it."""
    tasks: tuple[TaskSpec, ...]
    import_path: str
    """The config file's folder, where entrypoints are looked for last."""
    lock_file: str
    """``data_dir/workers.lock``, held shared for life (R3)."""
    control_plane_url: str
    credentials_dir: Path
    max_age: float
    """Seconds a credential is used for."""
    concurrency: int = 10
    """Runs that it executes at once."""
    limits: Limits = field(default_factory=Limits)
    max_runs: int | None = None
    """Runs after which the worker asks to be replaced; None: any number."""
    max_memory: int | None = None
    """Bytes in memory after which it does; None: it may grow."""
    stalled_after: float = 10.0
    """Seconds that task code may block the user loop before the log tells where."""
    kill_stalled_after: float | None = None
    """Seconds after which such a worker ends itself; None: never."""
    log_together: Callable[[], AbstractContextManager[None]] = nullcontext
    """Makes a block whose log lines are sent together."""
    attach: Callable[[asyncio.AbstractEventLoop], None] = _attach_nothing
    """Called with the runtime loop, to have captured output read there."""


class Inbox(Protocol):
    """Where the supervisor's messages about runs go; called on the runtime loop."""

    def is_busy(self) -> bool:
        """Whether there are runs; for any thread."""
        ...

    def assign(self, runs: list[AssignedRun], ahead: list[AssignedRun]) -> None:
        """Begin *runs* now, and those *ahead* as soon as others have ended."""
        ...

    def cancel(self, run_id: str, attempt: int) -> None:
        """Cancel that attempt, whether it has begun or not; any other is left alone."""
        ...

    def interrupt(self, run_id: str, attempt: int) -> None:
        """Have the run of that attempt go back to the queue, whether it has begun or not."""
        ...

    def drain(self, timeout: float) -> None:
        """Give back what has not begun, and end what has within *timeout* seconds.

        A second call, with less time, hurries the first.
        """
        ...


@dataclass(slots=True)
class _Request:
    """A trigger call under way."""

    run_id: str
    accepted: "Future[list[str]]"
    done: "Future[list[ChildOutcome]] | None"
    outcomes: list[ChildOutcome] = field(default_factory=list)
    """Those that have come so far."""


class RuntimeThread:
    """The thread, its loop, and what lives on it.

    ``start`` → (import tasks) → ``serve`` → … → ``finish``, all called in the main thread.
    ``trigger``, ``trigger_and_wait``, ``report`` and ``report_leaving`` are for any thread.

    Attributes:
        deadlines: When attempts must have ended; those that have not are told to the supervisor.
    """

    def __init__(self, settings: WorkerSettings, sock: socket) -> None:
        self._settings = settings
        self._sock = sock
        self._loop = asyncio.new_event_loop()
        self._opened: Future[StreamClient] = Future()
        self._requests: dict[int, _Request] = {}
        self._numbers = itertools.count(1)
        self._outcomes: list[RunOutcome] = []
        self._outcomes_lock = threading.Lock()
        self._suspended: Counter[tuple[str, int]] = Counter()
        self._draining = False
        self._inbox: Inbox | None = None
        self._heartbeat: Heartbeat | None = None
        self.deadlines = Deadlines()
        self._welcome: asyncio.Future[Welcome]
        self._channel: Channel[FromSupervisor]
        self._cache: CredentialCache
        self._control_plane: ControlPlane
        self._store: StreamStore

    @property
    def streams(self) -> StreamClient:
        """The streams of this process."""
        return self._opened.result()

    def start(self) -> None:
        """Start the thread and return when its clients are open."""
        threading.Thread(target=self._run, name="td-runtime", daemon=True).start()
        self._opened.result()

    def serve(self, inbox: Inbox, user_loop: asyncio.AbstractEventLoop) -> None:
        """Tell the supervisor that runs may come; they go to *inbox*, on *user_loop*."""
        self._inbox = inbox
        self._heartbeat = Heartbeat(
            user_loop,
            is_busy=inbox.is_busy,
            deadlines=self.deadlines,
            on_late=self._report_late,
            on_kill=self._report_stalled,
            stalled_after=self._settings.stalled_after,
            kill_after=self._settings.kill_stalled_after,
        )
        self._post(Ready(pid=os.getpid()))

    def finish(self) -> None:
        """Send what is left, close the clients and say goodbye; returns when all is sent."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

    def report(self, outcome: RunOutcome) -> None:
        """Send *outcome*; outcomes of one moment travel in one message."""
        with self._outcomes_lock:
            self._outcomes.append(outcome)
            first = len(self._outcomes) == 1
        if first:
            self._loop.call_soon_threadsafe(self._send_outcomes)

    def report_leaving(self, reason: str, runs: int, memory: int) -> None:
        """Ask to be replaced."""
        self._post(Leaving(reason=reason, runs=runs, memory=memory))

    def trigger(self, run_id: str, attempt: int, items: list[TriggerItem]) -> "Future[list[str]]":
        """Ask for runs; the future has their ids once they are durable."""
        request = _Request(run_id, Future(), None)
        self._ask(run_id, attempt, items, request)

        return request.accepted

    def trigger_and_wait(
        self, run_id: str, attempt: int, items: list[TriggerItem]
    ) -> "Future[list[ChildOutcome]]":
        """Ask for runs; the future has their outcomes once all have one."""
        done: Future[list[ChildOutcome]] = Future()
        self._ask(run_id, attempt, items, _Request(run_id, Future(), done))

        return done

    def suspended(self, run_id: str, attempt: int) -> None:
        """Say that this run waits for input and needs no place."""
        self._loop.call_soon_threadsafe(self._suspend, run_id, attempt)

    def resumed(self, run_id: str, attempt: int) -> None:
        """Say that one wait of this run is over."""
        self._loop.call_soon_threadsafe(self._resume, run_id, attempt)

    def _ask(self, run_id: str, attempt: int, items: list[TriggerItem], request: _Request) -> None:
        number = next(self._numbers)
        wait = request.done is not None
        message = Trigger(request=number, run_id=run_id, attempt=attempt, items=items, wait=wait)
        # Before it is registered: what cannot be said is the caller's error.
        frame = _frame_of(message)
        self._requests[number] = request
        self._loop.call_soon_threadsafe(self._channel.send_frame, frame)

    def _post(self, message: msgspec.Struct) -> None:
        self._loop.call_soon_threadsafe(self._channel.send_frame, encode_frame(message))

    # ------------------------------------------------------------ on the runtime loop

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        opening = self._loop.create_task(self._open())
        opening.add_done_callback(self._report_failed_opening)
        self._loop.run_forever()

    def _report_failed_opening(self, opening: "asyncio.Task[None]") -> None:
        error = opening.exception()
        if error is not None:
            self._opened.set_exception(error)

    async def _open(self) -> None:
        self._welcome = self._loop.create_future()
        self._channel = Channel(
            self._sock,
            decoder=_decoder,
            on_message=self._receive,
            on_closed=self._supervisor_gone,
            loop=self._loop,
        )
        self._settings.attach(self._loop)
        welcome = await self._welcome
        self._control_plane = ControlPlane(self._settings.control_plane_url, welcome.secret_key)
        self._cache = CredentialCache(
            self._settings.credentials_dir,
            origin=self._settings.control_plane_url,
            api_key=welcome.secret_key,
            minter=self._control_plane,
            max_age=self._settings.max_age,
            on_event=_log_cache_event,
            on_notice=self._send_notice,
        )
        self._store = StreamStore()
        self._opened.set_result(
            StreamClient(
                loop=self._loop,
                cache=self._cache,
                store=self._store,
                control_plane=self._control_plane,
            )
        )

    async def _close(self) -> None:
        await self.streams.close()
        await self._store.close()
        await self._control_plane.close()
        self._cache.close()
        self._send_outcomes()
        self._channel.send(Drained())
        await self._channel.flushed()

    def _supervisor_gone(self, _reason: Exception | None) -> None:
        """Leave at once, with whatever task code has started: nobody is left to report to."""
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def _receive(self, message: FromSupervisor) -> None:
        match message:
            case Assign():
                self._require_inbox().assign(message.runs, message.ahead)
                self._watch()
            case NoticeSent():
                self._receive_notice(message)
            case Triggered() | TriggerRefused() | ChildrenDone() | ChildrenPostponed():
                self._receive_answer(message)
            case CancelRun():
                self._cancel(message)
            case Ping():
                self._channel.send(Pong())
            case InterruptRun():
                self._require_inbox().interrupt(message.run_id, message.attempt)
            case Drain():
                self._drain(message)
            case Welcome():
                self._welcome.set_result(message)

    def _receive_answer(
        self, message: Triggered | TriggerRefused | ChildrenDone | ChildrenPostponed
    ) -> None:
        match message:
            case Triggered():
                self._accepted(message)
            case TriggerRefused():
                self._refused(message)
            case ChildrenDone():
                self._children_done(message)
            case ChildrenPostponed():
                self._children_postponed(message)

    def _cancel(self, message: CancelRun) -> None:
        # Here and not on the user loop, which may be stuck in this very run.
        grace = self._settings.limits.cancel_grace
        self.deadlines.set(message.run_id, message.attempt, grace, "CANCELED")
        self._require_inbox().cancel(message.run_id, message.attempt)
        self._watch()
        # For a plain `def` task that waits for children in its thread, where nobody can cancel it.
        # A copy: other threads ask for runs meanwhile.
        for request in list(self._requests.values()):
            if request.run_id == message.run_id and request.done is not None:
                given_up, request.done = request.done, Future()
                if given_up.set_running_or_notify_cancel():
                    given_up.set_exception(asyncio.CancelledError("the run is canceled"))

    def _watch(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.wake()

    def _report_late(self, late: Late) -> None:
        """Say that only a kill ends this attempt."""
        self._channel.send(Overdue(run_id=late.run_id, attempt=late.attempt, status=late.status))

    def _report_stalled(self, seconds: float) -> None:
        """Say why this process is about to end. It is a few bytes: they are in the socket now."""
        self._channel.send(Stalled(seconds=seconds))

    def _require_inbox(self) -> Inbox:
        if self._inbox is None:
            raise AssertionError("the supervisor sent a run before this worker was ready")

        return self._inbox

    def _suspend(self, run_id: str, attempt: int) -> None:
        self._suspended[run_id, attempt] += 1
        self._channel.send(Suspended(run_id=run_id, attempt=attempt))
        if self._draining:
            self._require_inbox().interrupt(run_id, attempt)

    def _resume(self, run_id: str, attempt: int) -> None:
        self._suspended[run_id, attempt] -= 1
        if not self._suspended[run_id, attempt]:
            del self._suspended[run_id, attempt]
        self._channel.send(Resumed(run_id=run_id, attempt=attempt))

    def _drain(self, message: Drain) -> None:
        # A run that waits for input may do so for hours: it starts again in another worker, which
        # finds the input where this one would have.
        self._draining = True
        for run_id, attempt in self._suspended:
            self._require_inbox().interrupt(run_id, attempt)
        self._require_inbox().drain(message.timeout)

    def _send_outcomes(self) -> None:
        with self._outcomes_lock:
            outcomes, self._outcomes = self._outcomes, []
        if outcomes:
            for part in parts(outcomes):
                self._channel.send(Outcomes(outcomes=part))

    def _accepted(self, message: Triggered) -> None:
        request = self._requests[message.request]
        if request.done is None:
            del self._requests[message.request]
        _settle(request.accepted, message.run_ids)

    def _refused(self, message: TriggerRefused) -> None:
        request = self._requests.pop(message.request)
        error = TriggerRefusedError(message.message)
        future: Future[Any] = request.done or request.accepted
        if future.set_running_or_notify_cancel():
            future.set_exception(error)

    def _children_done(self, message: ChildrenDone) -> None:
        request = self._requests[message.request]
        request.outcomes += message.outcomes
        if message.last:
            del self._requests[message.request]
            if request.done is not None:
                _settle(request.done, request.outcomes)

    def _children_postponed(self, message: ChildrenPostponed) -> None:
        request = self._requests.pop(message.request)
        self._require_inbox().interrupt(message.run_id, message.attempt)
        # For a plain `def` task, which nobody can cancel while it waits in its thread.
        if request.done is not None and request.done.set_running_or_notify_cancel():
            request.done.set_exception(asyncio.CancelledError("the runtime stops"))

    def _send_notice(self, notice: Notice) -> None:
        """Tell the supervisor what this process has evicted; called in any thread."""
        self._post(
            NoticeSent(
                slot=None if notice.slot is None else str(notice.slot),
                credential_id=notice.credential_id,
                reason=notice.reason,
                pid=notice.pid,
                at=notice.at,
            )
        )

    def _receive_notice(self, message: NoticeSent) -> None:
        dropped = self._cache.receive(
            Notice(
                slot=None if message.slot is None else Slot(message.slot),
                credential_id=message.credential_id,
                reason=message.reason,
                pid=message.pid,
                at=message.at,
            )
        )
        log.info(
            "notice.received",
            slot=message.slot,
            credential_id=message.credential_id,
            reason=message.reason,
            sender_pid=message.pid,
            dropped=dropped,
        )


def _frame_of(message: Trigger) -> bytes:
    """Encode a request for runs.

    Raises:
        TriggerRefusedError: It is larger than a frame may be.
        UnicodeEncodeError: A task id or a key is no text.
    """
    frame = encode_frame(message)
    if len(frame) > MAX_FRAME:
        raise TriggerRefusedError(
            f"a batch of {len(frame):,} bytes; one call can ask for {MAX_FRAME:,}: use several"
        )

    return frame


def _settle(future: "Future[Any]", value: Any) -> None:
    """Resolve *future*, unless the task that waited for it was cancelled."""
    if future.set_running_or_notify_cancel():
        future.set_result(value)


def _log_cache_event(event: CacheEvent) -> None:
    getattr(log, event.level)(event.name, **event.fields)
