"""One worker process: the user loop in the main thread, the runtime thread beside it.

The user loop executes runs. The runtime thread has a loop of its own for what must go on while
user code blocks: messages, credentials, appenders. Nothing here outlives the socket to the
supervisor: at its end the process leaves at once, with everything in its process group (R3).
"""

import asyncio
import contextlib
import fcntl
import os
import sys
from collections.abc import Coroutine
from concurrent.futures import Future
from socket import socket
from typing import Any

import structlog

from td_sharedcache.seal import Seal
from td_worker.errors import TaskLoadError
from td_worker.executor import Executor, Limits
from td_worker.inbox import Inbox
from td_worker.messages import EXIT_TASK_IMPORT
from td_worker.recycling import Retirement
from td_worker.runtime import RuntimeThread, WorkerSettings
from td_worker.task import Task, load_task

__all__ = ["Limits", "WorkerSettings", "run_worker", "warm_up"]

log = structlog.get_logger()


def warm_up() -> None:
    """Do what comes out the same in every worker; to be called before they are forked.

    OpenSSL looks its ciphers up when they are first used: 2 ms and 0.9 MiB that workers share then.
    Nothing stays open.
    """
    Seal(origin="", api_key="")


def run_worker(settings: WorkerSettings, sock: socket) -> int:
    """Be a worker until the supervisor says drain; return the exit status.

    To be called in the main thread of a freshly forked process that leads its process group. Owns
    *sock*. When the supervisor is gone the process is killed from inside; this never returns then.
    """
    _hold_workers_lock(settings.lock_file)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    runtime = RuntimeThread(settings, sock)
    runtime.start()
    try:
        tasks = _load_tasks(settings)
    except TaskLoadError as error:
        log.error("worker.boot_failed", error_message=str(error))
        return EXIT_TASK_IMPORT
    _run_to_end(loop, _serve(settings, runtime, tasks))
    runtime.finish()

    return 0


def _run_to_end(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Run *loop* until *work* is done, whatever task code does to the loop.

    A ``sys.exit()`` in an asyncio task or callback of task code leaves the loop. Whoever awaits
    that task gets the exception, too, so its run fails as it should; its neighbours go on.
    """
    serving = loop.create_task(work)
    while not serving.done():
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_until_complete(serving)
    serving.result()


async def _serve(settings: WorkerSettings, runtime: RuntimeThread, tasks: dict[str, Task]) -> None:
    executor = Executor(
        tasks,
        streams=runtime.streams,
        messenger=runtime,
        report=runtime.report,
        deadlines=runtime.deadlines,
        limits=settings.limits,
        on_end=Retirement(
            runtime.report_leaving,
            max_runs=settings.max_runs,
            max_memory=settings.max_memory,
        ).note_run,
    )
    drained: Future[float] = Future()
    loop = asyncio.get_running_loop()
    inbox = Inbox(
        executor,
        loop,
        drained,
        places=settings.concurrency,
        deadlines=runtime.deadlines,
        report=runtime.report,
        log_together=settings.log_together,
    )
    executor.on_place = inbox.fill
    runtime.serve(inbox, loop)
    timeout = await asyncio.wrap_future(drained)
    await executor.drain(timeout)


def _load_tasks(settings: WorkerSettings) -> dict[str, Task]:
    # Appended, not put in front: a user's file must not shadow an installed package.
    if settings.import_path not in sys.path:
        sys.path.append(settings.import_path)

    return {spec.id: load_task(spec) for spec in settings.tasks}


def _hold_workers_lock(path: str) -> None:
    """Hold the shared lock that keeps a new supervisor from claiming while we live (R3).

    The descriptor is never closed: the kernel frees the lock when the process is gone, however it
    dies. A child that task code forks closes it, or the lock would live as long as that child.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    os.register_at_fork(after_in_child=lambda: os.close(fd))
