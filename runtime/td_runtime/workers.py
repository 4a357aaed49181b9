"""The workers: forked, watched, replaced when they die, stopped in order."""

import asyncio
import itertools
import os
import random
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec
import structlog

from td_runtime.ahead import Ahead
from td_runtime.errors import TaskImportError, TdRuntimeError, TooManyRestartsError
from td_runtime.fork import Child, fork_child
from td_runtime.log_sink import LogSink
from td_runtime.logs import LineRing
from td_runtime.restart import Deaths, RestartPolicy
from td_runtime.secret import Secret
from td_runtime.store import Run
from td_worker.channel import Channel
from td_worker.messages import (
    EXIT_TASK_IMPORT,
    Drain,
    Drained,
    FromWorker,
    Leaving,
    Ping,
    Pong,
    Ready,
    Stalled,
    Welcome,
)

__all__ = ["HeldRun", "Worker", "WorkerEvents", "WorkerPool", "WorkerState"]

log = structlog.get_logger()

_decoder: Final = msgspec.msgpack.Decoder(FromWorker)

_NO_HURRY: Final = 10 * 365 * 86_400.0
"""Seconds that the runs of a worker get which is replaced in order: they end when they end."""

_LOOKS: Final = 4
"""How many looks without an answer are too many."""

_KILL_GRACE: Final = 7.0
"""Seconds beyond the drain time-out after which a worker that is still there is killed: longer
than what the worker gives runs that it has cancelled."""


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    RETIRING = "retiring"
    """It has been replaced, and ends with the last of its runs."""
    DYING = "dying"
    """It was killed, and gets no runs any more."""
    GONE = "gone"


@dataclass(slots=True)
class HeldRun:
    """A run that a worker has."""

    run: Run
    since: float = field(default_factory=time.monotonic)
    """When it was handed out."""
    waits: int = 0
    """How many of its calls wait for children."""
    moving: bool = False
    """It was told to go back to the queue, to leave its worker to another run."""
    overdue: str | None = None
    """It ignores its end, and this is its status once its worker is dead."""

    @property
    def waiting(self) -> bool:
        """Whether it waits for its children and takes no place."""
        return self.waits > 0


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process and the supervisor's end of its socket."""

    number: int
    owner: str
    """Names this process among all workers there ever were: the fence of its runs (R5)."""
    child: Child
    channel: Channel[FromWorker]
    ring: LineRing
    """The last lines it logged."""
    tasks: frozenset[str] | None = None
    """Those it knows; None: any."""
    generation: int = 0
    """How often the workers had been renewed when it was forked."""
    outdated: "Worker | None" = None
    """Whose place it takes once it is ready."""
    ready_at: float = 0.0
    """When it had imported its tasks, on the monotonic clock."""
    state: WorkerState = WorkerState.BOOTING
    runs: dict[str, HeldRun] = field(default_factory=dict)
    is_condemned: bool = False
    """It was killed for a run that ignored its end: nobody is to blame for its death."""
    has_worked: bool = False
    """An attempt has ended in it."""
    ahead: Ahead = field(default_factory=Ahead)
    """How much it is given beyond its places."""
    unanswered: int = 0
    """How many looks ago it was asked whether it lives, and has not answered yet."""
    is_retired: bool = False
    """Another one has its place, and it ends with the last of its runs."""
    is_overstaying: bool = False
    """It had its time to end, and is killed."""
    stuck: str | None = None
    """What kept it from working, if it was killed for that."""
    exit_status: int = 0
    """How the process ended, -signal if by one; once it is gone."""

    @property
    def pid(self) -> int:
        """The process id."""
        return self.child.pid

    @property
    def died(self) -> bool:
        """Whether its end was its own, once it is gone, and not asked for."""
        return not (self.is_retired and (self.exit_status == 0 or self.is_overstaying))

    @property
    def load(self) -> int:
        """How many places its runs take."""
        return sum(not held.waiting for held in self.runs.values())

    def last_lines(self, run_id: str) -> str | None:
        """Return what it logged last of that run, and of itself."""
        return self.ring.tail(run_id)

    def kill(self) -> None:
        """End the process and what it started, at once."""
        if self.state is WorkerState.READY:
            self.state = WorkerState.DYING
        self.child.kill_group()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvents:
    """What the pool tells its owner; all called on the loop."""

    on_message: Callable[[Worker, FromWorker], None]
    on_ready: Callable[[Worker], None]
    on_gone: Callable[[Worker], None]
    """The worker is dead and everything it had sent was dispatched; its runs are still in it."""
    on_given_up: Callable[[TdRuntimeError], None]


class WorkerPool:
    """The workers of one supervisor. All methods belong to its loop.

    Args:
        count: How many workers to keep.
        body: What a worker does in its own process; gets its number, its socket, and where its
            last lines are kept.
        secret: The API key, sent to each worker as its first message.
        sink: Where workers' log lines go; told whom to kill should the supervisor die.
        events: Who is told what.
        kill_silent_after: Seconds after which a worker that has runs and does not answer is killed.
        tasks: The tasks that workers know which are forked from now on; None: any.
        policy: When a worker that died is replaced.
    """

    def __init__(
        self,
        count: int,
        *,
        body: Callable[[int, socket.socket, LineRing], int],
        secret: Secret,
        sink: LogSink,
        events: WorkerEvents,
        loop: asyncio.AbstractEventLoop,
        kill_silent_after: float = 60.0,
        tasks: Iterable[str] | None = None,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._tasks = None if tasks is None else frozenset(tasks)
        self._silence = kill_silent_after
        self._body = body
        self._secret = secret
        self._sink = sink
        self._events = events
        self._loop = loop
        self._incarnations = itertools.count(1)
        self._policy = policy or RestartPolicy()
        self._deaths = {number: Deaths() for number in range(1, count + 1)}
        self.restarts = dict.fromkeys(self._deaths, 0)
        self._spare = itertools.count(-1, -1)
        self._generation = 0
        self._drain_timeout = 0.0
        self._renewed: asyncio.Future[None] | None = None
        """The renewal under way."""
        self._successor_deaths = Deaths()
        self._successor_timer: asyncio.TimerHandle | None = None
        self._leaving: deque[tuple[Worker, Leaving]] = deque()
        """Those that wait to be replaced: one after another, or a host would boot all at once."""
        self.workers: dict[int, Worker] = {}
        """By number; those that have no place any more, or not yet, by negative ones."""
        self._stopping = False
        self._all_gone = asyncio.Event()

    def start(self) -> None:
        """Fork every worker."""
        for number in self._deaths:
            self._fork(number)
        self._look_later()

    async def renew(
        self, count: int, *, tasks: Iterable[str], kill_silent_after: float, drain_timeout: float
    ) -> None:
        """Replace every worker by one that is forked from now on, one after another.

        Each works until the one for its place is ready; then it gets no more runs, and those it has
        may end. Returns when all are replaced, or the pool stops.

        Args:
            count: How many workers to keep.
            tasks: The tasks that the new ones know.
            kill_silent_after: Seconds after which a worker that does not answer is killed.
            drain_timeout: Seconds that the runs of the old ones get; then they are requeued.

        Raises:
            TooManyRestartsError: New ones keep dying before they are ready. Those that have not
                been replaced go on working.
        """
        self._silence = kill_silent_after
        self._tasks = frozenset(tasks)
        self._drain_timeout = drain_timeout
        self._generation += 1
        self._successor_deaths = Deaths()
        self._renewed = self._loop.create_future()
        for worker in list(self.workers.values()):
            if worker.state is WorkerState.RETIRING:
                self._set_end(worker)
        self._resize(count)
        self._replace_next()
        await self._renewed

    def _resize(self, count: int) -> None:
        for number in [number for number in self._deaths if number > count]:
            del self._deaths[number]
            if (worker := self.workers.get(number)) is not None:
                self._log_retired(worker, "fewer workers")
                self._step_down(worker)
                self._set_end(worker)
        for number in range(1, count + 1):
            if number not in self._deaths:
                self._deaths[number] = Deaths()
                self.restarts.setdefault(number, 0)
                self._fork(number)

    def _look_later(self) -> None:
        self._loop.call_later(self._silence / _LOOKS, self._look)

    def _look(self) -> None:
        """Ask workers that have runs whether they live; kill one that has not answered for long.

        A process that is stopped, or in code that never lets go of the interpreter, is not dead:
        its runs would be executing for ever. Looks are counted, not seconds: a supervisor that was
        stopped itself finds the answers first.
        """
        if self._stopping:
            return
        for worker in [each for each in self.workers.values() if each.runs]:
            if worker.unanswered >= _LOOKS:
                log.error("worker.silenced", number=worker.number, worker_pid=worker.pid)
                worker.stuck = f"the worker gave no answer for {self._silence:g} s and was killed"
                worker.kill()
            elif worker.unanswered == 0:
                worker.channel.send(Ping())
            worker.unanswered += 1
        self._look_later()

    def ready(self) -> Iterable[Worker]:
        """The workers that take runs."""
        return [w for w in self.workers.values() if w.state is WorkerState.READY]

    async def drain(self, timeout: float) -> None:
        """Have every worker finish its runs; returns when all processes are gone.

        Args:
            timeout: Seconds running runs get. What is left then is cancelled, then killed.
        """
        self._stop()
        for worker in self.workers.values():
            if worker.state is WorkerState.BOOTING:
                # It has no runs, and would not listen before its tasks are imported.
                worker.kill()
            worker.state = WorkerState.DRAINING
            worker.channel.send(Drain(timeout=timeout))
        if not await self._gone_within(timeout + _KILL_GRACE):
            await self.kill()

    async def kill(self) -> None:
        """End every worker at once; returns when all processes are gone."""
        self._stop()
        for worker in self.workers.values():
            worker.kill()
        await self._gone_within(None)

    def _stop(self) -> None:
        self._stopping = True
        if self._renewed is not None and not self._renewed.done():
            self._renewed.set_result(None)

    async def _gone_within(self, timeout: float | None) -> bool:
        if not self.workers:
            return True
        self._all_gone.clear()
        try:
            await asyncio.wait_for(self._all_gone.wait(), timeout)
        except TimeoutError:
            return False

        return True

    def _fork(self, number: int) -> None:
        """Fork worker *number*; when the system cannot, try again as after a failed boot."""
        if self._try_fork(number, number) is None:
            self._restart_later(number, lived=None)

    def _try_fork(self, number: int, place: int) -> Worker | None:
        try:
            child, sock, ring = self._fork_child(number)
        except OSError as error:
            log.error("worker.boot_failed", error_message=f"it cannot be forked: {error}")
            return None
        # Before anything else: from here on a death of the supervisor must not leave it behind.
        self._sink.guard(child.pid)
        worker = self.workers[place] = self._adopt(number, child, sock, ring)
        worker.channel.send(Welcome(secret_key=self._secret.reveal()))
        log.info("worker.started", number=number, worker_pid=worker.pid)

        return worker

    def _fork_child(self, number: int) -> tuple[Child, socket.socket, LineRing]:
        ring = LineRing()
        ours, theirs = socket.socketpair()
        try:
            child = fork_child(
                lambda: self._body(number, theirs, ring),
                name=f"td-worker-{number}",
                keep=[theirs.fileno(), self._sink.fd],
            )
        except OSError:
            ours.close()
            ring.close()
            raise
        finally:
            theirs.close()

        return child, ours, ring

    def _adopt(self, number: int, child: Child, sock: socket.socket, ring: LineRing) -> Worker:
        def receive(message: FromWorker) -> None:
            self._receive(worker, message)

        def closed(reason: Exception | None) -> None:
            if reason is not None:
                log.error("worker.protocol_broken", number=number, error_message=str(reason))
            # A worker closes its socket by ending. One that lives on, since task code has closed
            # its descriptors, would be given runs that it never hears of.
            worker.kill()

        worker = Worker(
            number=number,
            owner=f"{os.getpid()}.{time.time_ns()}.{next(self._incarnations)}",
            child=child,
            channel=Channel(
                sock, decoder=_decoder, on_message=receive, on_closed=closed, loop=self._loop
            ),
            ring=ring,
            tasks=self._tasks,
            generation=self._generation,
        )
        self._loop.add_reader(child.pidfd, self._exited, worker)

        return worker

    def _receive(self, worker: Worker, message: FromWorker) -> None:
        if isinstance(message, Ready):
            self._became_ready(worker)
        elif isinstance(message, Pong):
            worker.unanswered = 0
        elif isinstance(message, Stalled):
            worker.stuck = (
                f"the worker's loop was blocked for {message.seconds:.1f} s; it was killed"
            )
        elif isinstance(message, Leaving):
            self._leaving.append((worker, message))
            self._replace_next()
        elif not isinstance(message, Drained):
            self._events.on_message(worker, message)

    def _replace_next(self) -> None:
        """Replace the next worker that has done enough, or is old, once no other one boots."""
        while not self._stopping:
            if any(each.state is WorkerState.BOOTING for each in self.workers.values()):
                return
            if not self._leaving:
                self._renew_next()
                return
            worker, message = self._leaving.popleft()
            if worker.state is WorkerState.READY:
                self._log_retired(worker, message.reason, message)
                self._step_down(worker)
                worker.channel.send(Drain(timeout=_NO_HURRY))
                self._fork(worker.number)

    def _renew_next(self) -> None:
        if self._renewed is None or self._renewed.done():
            return
        old = [
            worker
            for worker in self.workers.values()
            if worker.generation < self._generation and not worker.is_retired
        ]
        if not old:
            self._renewed.set_result(None)
            return
        # One that is dying is replaced when it is dead.
        ready = [worker for worker in old if worker.state is WorkerState.READY]
        if ready and self._successor_timer is None:
            self._fork_successor(ready[0])

    def _fork_successor(self, old: Worker) -> None:
        successor = self._try_fork(old.number, next(self._spare))
        if successor is None:
            self._successor_failed()
        else:
            successor.outdated = old

    def _successor_failed(self) -> None:
        """Try again later, or give the renewal up."""
        if self._renewed is None or self._renewed.done():
            return
        try:
            restart = self._policy.after_death(
                self._successor_deaths, lived=None, random=random.random, who="a new worker"
            )
        except TooManyRestartsError as error:
            self._renewed.set_exception(error)
            return
        self._successor_deaths = restart.deaths
        self._successor_timer = self._loop.call_later(restart.delay, self._renew_again)

    def _renew_again(self) -> None:
        self._successor_timer = None
        self._replace_next()

    def _succeed(self, worker: Worker) -> None:
        """Let a new worker that is ready take the place of an old one."""
        old, worker.outdated = worker.outdated, None
        self._successor_deaths = Deaths()
        if old is not None and self.workers.get(worker.number) is old:
            self._log_retired(old, "reload")
            self._step_down(old)
            self._set_end(old)
        self._forget(worker)
        self.workers[worker.number] = worker

    def _step_down(self, worker: Worker) -> None:
        """Have a worker leave its place; it gets no more runs."""
        if worker.state is WorkerState.BOOTING:
            # It has no runs, and would not listen before its tasks are imported.
            worker.kill()
        worker.state = WorkerState.RETIRING
        worker.is_retired = True
        self._forget(worker)
        self.workers[next(self._spare)] = worker

    def _set_end(self, worker: Worker) -> None:
        """Give the runs of a worker that leaves the time of a drain."""
        worker.channel.send(Drain(timeout=self._drain_timeout))
        self._loop.call_later(self._drain_timeout + _KILL_GRACE, self._end_stay, worker)

    def _end_stay(self, worker: Worker) -> None:
        if worker.state is not WorkerState.GONE:
            worker.is_overstaying = True
            worker.kill()

    def _log_retired(self, worker: Worker, reason: str, message: Leaving | None = None) -> None:
        log.info(
            "worker.retired",
            number=worker.number,
            worker_pid=worker.pid,
            reason=reason,
            runs=None if message is None else message.runs,
            memory=None if message is None else message.memory,
        )

    def _became_ready(self, worker: Worker) -> None:
        log.info("worker.booted", number=worker.number, worker_pid=worker.pid)
        if worker.state is WorkerState.BOOTING:
            worker.state = WorkerState.READY
            worker.ready_at = time.monotonic()
            if worker.outdated is not None:
                self._succeed(worker)
            self._events.on_ready(worker)
        self._replace_next()

    def _exited(self, worker: Worker) -> None:
        """The process is dead: hear it out, bury it, replace it."""
        self._loop.remove_reader(worker.child.pidfd)
        # Outcomes it sent before it died count: only then are its other runs started again.
        worker.channel.drain()
        worker.channel.close()
        worker.kill()
        worker.exit_status = worker.child.reap()
        self._sink.unguard(worker.pid)
        before, worker.state = worker.state, WorkerState.GONE
        self._forget(worker)
        self._log_exit(worker)
        self._events.on_gone(worker)
        worker.ring.close()
        if self._stopping:
            self._note_gone()
            return
        if worker.outdated is not None:
            self._successor_failed()
        elif not worker.is_retired:
            self._fill_place(worker, before is not WorkerState.BOOTING)
        self._replace_next()

    def _fill_place(self, worker: Worker, booted: bool) -> None:
        """Replace a worker that died; if it was about to be, then by the one that boots for it."""
        for successor in self.workers.values():
            if successor.outdated is worker:
                self._succeed(successor)
                return
        self._replace(worker, booted)

    def _forget(self, worker: Worker) -> None:
        (key,) = [key for key, each in self.workers.items() if each is worker]
        del self.workers[key]

    def _note_gone(self) -> None:
        if not self.workers:
            self._all_gone.set()

    def _log_exit(self, worker: Worker) -> None:
        code = worker.exit_status
        log.log(
            20 if code == 0 else 30,
            "worker.exited",
            number=worker.number,
            worker_pid=worker.pid,
            status=code,
            signal=signal.Signals(-code).name if code < 0 else None,
            runs=list(worker.runs),
        )

    def _replace(self, worker: Worker, booted: bool) -> None:
        if worker.exit_status == EXIT_TASK_IMPORT and not booted:
            self._events.on_given_up(
                TaskImportError(
                    "a worker cannot import the tasks",
                    where=f"worker {worker.number}",
                    advice="Run `td-runtime check`; the log has the entrypoint and the reason.",
                )
            )
            return
        if worker.has_worked:
            # It was of use, however short its life: the next one need not wait long for its turn.
            self._deaths[worker.number] = Deaths()
        lived = time.monotonic() - worker.ready_at if booted else None
        self._restart_later(worker.number, lived=lived)

    def _restart_later(self, number: int, *, lived: float | None) -> None:
        try:
            restart = self._policy.after_death(
                self._deaths[number], lived=lived, random=random.random, who=f"worker {number}"
            )
        except TooManyRestartsError as error:
            log.error("worker.abandoned", number=number)
            self._events.on_given_up(error)
            return
        self._deaths[number] = restart.deaths
        self.restarts[number] += 1
        log.warning("worker.restart_scheduled", number=number, delay_s=round(restart.delay, 3))
        self._loop.call_later(restart.delay, self._fork_again, number)

    def _fork_again(self, number: int) -> None:
        if not self._stopping and number in self._deaths and number not in self.workers:
            self._fork(number)
