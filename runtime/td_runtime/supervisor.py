"""The supervisor: starts the processes of a host, keeps them alive, and stops them in order.

One process, one thread, one loop. It owns the run store and never imports task code. What may be
open when it forks, and what children do with it, is in :mod:`td_runtime.fork`.

Start order: data folder → log sink → gateway (:mod:`td_runtime.start`) → tasks inspected → last
workers gone → store → control socket → workers. Stop order (design §3): no more hand-outs →
workers drain → gateway → log sink. Who may die when: docs/concepts/processes.md.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Coroutine, Mapping
from typing import Any, Final

import structlog

from td_runtime import __version__, logs
from td_runtime.config import Config
from td_runtime.control_messages import StatusView, Stopping, WorkerView
from td_runtime.control_server import ControlServer
from td_runtime.dispatch import Dispatcher
from td_runtime.errors import TdRuntimeError
from td_runtime.gateway_process import GatewayProcess
from td_runtime.inspector import inspect_tasks
from td_runtime.loops import Loops
from td_runtime.payloads import PayloadChecker
from td_runtime.relay import NoticeRelay
from td_runtime.reload import Reloader
from td_runtime.requests import Requests
from td_runtime.retention import Retention
from td_runtime.schedule import Schedule
from td_runtime.scheduler import Scheduler, Tick
from td_runtime.start import Ground, control_plane_url
from td_runtime.store import RunStore, Status, open_store
from td_runtime.terminal import Terminal
from td_runtime.worker_body import be_worker
from td_runtime.workers import Worker, WorkerEvents, WorkerPool
from td_worker.messages import FromWorker, NoticeSent, TriggerItem
from td_worker.task import TaskFacts

__all__ = ["Supervisor"]

log = structlog.get_logger()

_ANSWER_TIMEOUT: Final = 2.0
"""Seconds that clients of the control socket have at the end to take their answers."""

_BOOT_PATIENCE: Final = 1.0
"""Seconds after the first worker was ready that the others are waited for at the start."""

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """One life of ``td-runtime start``, from where the gateway boots.

    To be called in this order: ``prepare``, ``run``, ``raise_failure``.

    Args:
        config: The configuration.
        ground: What stands by now.
        gateway: The gateway, booting, where it is the control plane.
        owner_fd: Reads EOF when whoever started this supervisor is gone; then it stops, too.
    """

    def __init__(
        self,
        config: Config,
        ground: Ground,
        gateway: GatewayProcess | None,
        *,
        owner_fd: int | None = None,
    ) -> None:
        self._config = config
        self._ground = ground
        self._owner_fd = owner_fd
        self._service = ground.service
        self._terminal = Terminal()
        self._data_dir = ground.data_dir
        self._sink = ground.sink
        self._gateway = gateway
        self._url = control_plane_url(config, ground.data_dir)
        self._relay = NoticeRelay()
        self._started_at = time.time()
        self._state = "starting"
        self._stops = 0
        self._drain_timeout = config.runtime.drain_timeout
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._hurry: asyncio.Event
        self._dispatcher: Dispatcher
        self._requests: Requests
        self._retention: Retention
        self._scheduler: Scheduler
        self._loops: Loops
        self._reloader: Reloader
        self._store: RunStore
        self._pool: WorkerPool
        self._payloads: PayloadChecker
        self._typed: set[str] = set()
        self._first_worker = asyncio.Event()
        self._all_workers = asyncio.Event()

    def prepare(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what must be done before workers are forked, and before *loop* runs.

        Raises:
            TaskImportError: The tasks cannot be imported.
        """
        self._loop = loop
        self._register(inspect_tasks(self._config, keep=(self._sink.fd,)))
        # Before there are signal handlers: a stop signal ends this wait.
        self._data_dir.wait_for_workers()

    def raise_failure(self) -> None:
        """Raise what made it stop, if that was a failure.

        Raises:
            TdRuntimeError: What gave up; carries the exit code.
        """
        if self._failure is not None:
            raise self._failure

    def _register(self, found: list[TaskFacts]) -> None:
        for facts in found:
            log.info("task.registered", task=facts.id, entrypoint=facts.entrypoint)
        self._typed = {facts.id for facts in found if facts.payload_schema is not None}

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Run until told to stop."""
        if self._gateway is not None:
            self._gateway.on_given_up = self._fail
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loop.set_exception_handler(self._callback_failed)
        self._loop.add_reader(self._sink.pidfd, self._sink_gone)
        for number in _STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._stop_requested, number)
        self._reloader = self._make_reloader()
        self._loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        self._keep_alive()
        if self._owner_fd is not None:
            self._loop.add_reader(self._owner_fd, self._owner_gone)
        async with open_store(self._data_dir.run_store) as self._store:
            await self._serve()

    async def _serve(self) -> None:
        for run in await self._store.requeue_unfinished():
            log.info("run.requeued", **run.log_context())
        self._payloads = self._make_payloads()
        self._dispatcher = Dispatcher(
            self._store,
            {task.id: task for task in self._config.tasks},
            limits=self._config.limits,
            concurrency=self._config.runtime.concurrency,
            on_fatal=self._fail,
            check_payloads=lambda items: self._payloads.check(items),
        )
        self._pool = self._make_pool()
        self._requests = self._make_requests()
        # Before anything is forked: whatever is wrong with the socket then leaves nobody behind.
        control = ControlServer(self._data_dir, self._requests.answer, self._loop)
        self._retention = Retention(self._store, self._config.store)
        retention = self._in_background(self._retention.run())
        try:
            self._pool.start()
            self._start_payloads()
            await self._until_stopped()
        finally:
            retention.cancel()
            await self._shut_down(control)

    async def _until_stopped(self) -> None:
        stopped = self._loop.create_task(self._stop.wait())
        if await self._all_ready(stopped):
            self._state = "running"
            log.info("runtime.ready", control_plane=self._url)
            if self._owner_fd is not None:
                with contextlib.suppress(BrokenPipeError):
                    os.write(self._owner_fd, b"ready\n")
            self._service.ready(self._summary())
            handing_out = self._in_background(self._dispatcher.run(self._pool))
            self._scheduler = self._make_scheduler()
            ticking = self._in_background(self._scheduler.run())
            self._loops = Loops(self._store, self._dispatcher, on_failed=self._fail)
            await self._loops.keep(self._replicas())
            reloading = self._in_background(self._reloader.run())
            await stopped
            ticking.cancel()
            reloading.cancel()
            await asyncio.wait({reloading})
            self._loops.stop()
            # Not cancelled: runs that are being claimed must reach their workers.
            self._dispatcher.stop()
            await asyncio.wait({handing_out})

    def _make_scheduler(self) -> Scheduler:
        async def accept(tick: Tick) -> None:
            item = TriggerItem(task=tick.task, payload=tick.payload, idempotency_key=tick.key)
            await self._dispatcher.accept([item], triggered_by="schedule")

        return Scheduler(self._schedules(), records=self._store, accept=accept)

    def _schedules(self) -> dict[str, Schedule]:
        schedules = {task.id: task.schedule for task in self._config.tasks}

        return {task: schedule for task, schedule in schedules.items() if schedule is not None}

    def _replicas(self) -> dict[str, int]:
        return {task.id: task.replicas for task in self._config.tasks}

    def _make_requests(self) -> Requests:
        return Requests(
            self._store,
            self._dispatcher,
            limits=self._config.limits,
            tasks=lambda: self._config.tasks,
            status=self._status,
            stop=self._stop_asked,
            on_failed=self._fail,
        )

    def _start_payloads(self) -> None:
        with contextlib.suppress(OSError):  # then it is forked at the next trigger
            self._payloads.start()

    def _make_payloads(self) -> PayloadChecker:
        return PayloadChecker(
            self._config,
            self._typed,
            keep=(self._sink.fd,),
            guard=self._sink,
            loop=self._loop,
        )

    # ------------------------------------------------------------ reload

    def _make_reloader(self) -> Reloader:
        return Reloader(
            current=lambda: self._config,
            apply=self._apply,
            keep=(self._sink.fd,),
            guard=self._sink,
            service=self._service,
            status=self._summary,
        )

    def _hung_up(self) -> None:
        """Take SIGHUP: whoever worked in the terminal is gone, or the config has changed."""
        if self._terminal.is_closed():
            self._stop_requested(signal.SIGHUP)
        else:
            self._reloader.request()

    async def _apply(self, config: Config, facts: list[TaskFacts]) -> None:
        """Put *config* into force; returns when all workers have its code.

        Raises:
            TooManyRestartsError: New workers do not get ready; the old ones go on.
            StoreError: The store cannot be asked.
        """
        self._config = config
        if not self._stop.is_set():  # whoever asked for the stop may have said how long
            self._drain_timeout = config.runtime.drain_timeout
        self._ground.configure_logs(config)
        self._register(facts)
        outdated, self._payloads = self._payloads, self._make_payloads()
        self._start_payloads()
        if self._gateway is not None:
            self._gateway.reload(
                allow_origins=config.gateway.allow_origins, log_level=config.log.level
            )
        self._requests.reload(config.limits)
        self._retention.reload(config.store)
        self._dispatcher.reload(
            {task.id: task for task in config.tasks},
            limits=config.limits,
            concurrency=config.runtime.concurrency,
        )
        self._scheduler.reload(self._schedules())
        await self._loops.keep(self._replicas())
        await outdated.retire()
        await self._pool.renew(
            config.runtime.workers,
            tasks=[task.id for task in config.tasks],
            kill_silent_after=config.runtime.kill_silent_after,
            drain_timeout=config.runtime.drain_timeout,
        )

    def _summary(self) -> str:
        """Say what runs, for the service manager."""
        workers, tasks = self._config.runtime.workers, len(self._config.tasks)

        return f"{workers} workers, {tasks} tasks, control plane {self._url}"

    def _keep_alive(self) -> None:
        """Tell the service manager that the loop turns, as often as it wants to hear it."""
        if self._service.watchdog is not None:
            self._service.alive()
            self._loop.call_later(self._service.watchdog / 2, self._keep_alive)

    # ------------------------------------------------------------ stop

    async def _all_ready(self, stopped: "asyncio.Task[bool]") -> bool:
        """Wait for the gateway and the workers; False when we are to stop before that.

        One that takes long to import its tasks holds up the others for a moment only, so that work
        spreads from the beginning: the first to be ready must not get all of it.
        """
        needed = [self._first_worker, *([self._gateway.ready] if self._gateway else [])]
        for event in needed:
            await self._await_event(event, stopped)
        await self._await_event(self._all_workers, stopped, timeout=_BOOT_PATIENCE)

        return not stopped.done()

    async def _await_event(
        self, event: asyncio.Event, stopped: "asyncio.Task[bool]", *, timeout: float | None = None
    ) -> None:
        ready = self._loop.create_task(event.wait())
        await asyncio.wait({ready, stopped}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Start what must not fail while the runtime runs."""
        task = self._loop.create_task(work)
        task.add_done_callback(self._background_ended)

        return task

    def _background_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _shut_down(self, control: ControlServer) -> None:
        self._state = "draining"
        self._service.stopping()
        timeout = 0.0 if self._failure is not None else self._drain_timeout
        log.info("runtime.drain_requested", drain_timeout_s=timeout)
        self._requests.refuse_runs()
        self._dispatcher.stop()
        await self._drain_workers(timeout)
        await self._dispatcher.close()
        await self._answer_rest(control)
        self._payloads.close()
        control.close()
        if self._gateway is not None:
            await self._gateway.stop()
        for number in (*_STOP_SIGNALS, signal.SIGHUP):
            self._loop.remove_signal_handler(number)

    async def _answer_rest(self, control: ControlServer) -> None:
        """Have every client hear how its run ended, but wait for none that does not read."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                await self._requests.settled()
                await control.flushed()

    async def _drain_workers(self, timeout: float) -> None:
        """Drain the workers; a second signal cuts it short."""
        draining = self._loop.create_task(self._pool.drain(timeout))
        hurry = self._loop.create_task(self._hurry.wait())
        await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not draining.done():
            draining.cancel()
            await self._pool.kill()

    def _stop_requested(self, number: int) -> None:
        self._stops += 1
        log.info("runtime.stop_requested", signal=signal.Signals(number).name, count=self._stops)
        self._stop.set()
        if self._stops > 1:
            self._hurry.set()

    def _stop_asked(self, by: str, drain_timeout: float | None) -> Stopping:
        self._stops += 1
        log.info("runtime.stop_requested", signal=f"request of {by}", count=self._stops)
        if drain_timeout is not None:
            self._drain_timeout = drain_timeout
        if drain_timeout == 0 and self._stops > 1:
            self._hurry.set()
        self._requests.refuse_runs()
        self._stop.set()

        return Stopping(pid=os.getpid())

    def _sink_gone(self) -> None:
        """Nobody would see what happens from here on, and nobody guards our children."""
        self._loop.remove_reader(self._sink.pidfd)
        self._fail(
            TdRuntimeError(
                "the log sink was killed",
                where=f"process {self._sink.pid}",
                advice="Look for the out-of-memory killer in the kernel log, then start again.",
            )
        )

    def _owner_gone(self) -> None:
        if self._owner_fd is not None:
            self._loop.remove_reader(self._owner_fd)
        self._stop.set()

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised: what it was about to do for a worker or a run is not done now.

        Going on would leave that run executing for ever; the next start takes it up again.
        """
        loop.default_exception_handler(context)
        if "handle" in context and (error := context.get("exception")) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Something that everything rests on is broken: stop, and exit with its code."""
        if self._failure is None:
            self._failure = error
            log.error("runtime.failed", error_type=type(error).__name__, error_message=str(error))
        self._stop.set()

    # ------------------------------------------------------------ processes

    def _make_pool(self) -> WorkerPool:
        runtime = self._config.runtime

        return WorkerPool(
            runtime.workers,
            body=self._be_worker,
            secret=self._ground.secret,
            sink=self._sink,
            events=WorkerEvents(
                on_message=self._receive,
                on_ready=self._worker_ready,
                on_gone=self._worker_gone,
                on_given_up=self._fail,
            ),
            loop=self._loop,
            kill_silent_after=runtime.kill_silent_after,
            tasks=[task.id for task in self._config.tasks],
        )

    def _be_worker(self, number: int, sock: socket.socket, ring: logs.LineRing) -> int:
        return be_worker(
            number, sock, ring, config=self._config, ground=self._ground, url=self._url
        )

    def _receive(self, worker: Worker, message: FromWorker) -> None:
        if isinstance(message, NoticeSent):
            self._relay.relay(message, worker, self._pool.workers.values())
        else:
            self._dispatcher.receive(worker, message)

    def _worker_ready(self, _: Worker) -> None:
        self._first_worker.set()
        ready = list(self._pool.ready())
        if len(ready) == len(self._pool.workers):
            self._all_workers.set()
        self._dispatcher.worker_ready(ready)

    def _worker_gone(self, worker: Worker) -> None:
        self._dispatcher.release(worker, blame=self._state == "running" and worker.died)

    # ------------------------------------------------------------ status

    def _status(self, counts: Mapping[Status, int]) -> StatusView:
        return StatusView(
            pid=os.getpid(),
            version=__version__,
            state=self._state,
            started_at=self._started_at,
            control_plane_url=self._url,
            gateway_pid=self._gateway.pid if self._gateway else None,
            workers=[self._worker_view(w) for _, w in sorted(self._pool.workers.items())],
            runs={str(status): count for status, count in counts.items() if count},
            notices_dropped=self._relay.dropped,
        )

    def _worker_view(self, worker: Worker) -> WorkerView:
        return WorkerView(
            number=worker.number,
            pid=worker.pid,
            state=str(worker.state),
            runs=len(worker.runs),
            restarts=self._pool.restarts[worker.number],
        )
