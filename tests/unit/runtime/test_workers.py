"""The pool of workers where the system gives it no processes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from td_runtime import workers
from td_runtime.errors import TdRuntimeError, TooManyRestartsError
from td_runtime.secret import Secret
from td_runtime.workers import WorkerEvents, WorkerPool


class Sink:
    """A log sink that is told whom to guard."""

    fd = 2

    def guard(self, group: int) -> bool:
        return True

    def unguard(self, group: int) -> bool:
        return True


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse every fork, as a `pids` limit does."""
    asked: list[str] = []

    def refuse(body: Callable[[], int], *, name: str, keep: Any) -> None:
        asked.append(name)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(workers, "fork_child", refuse)
    return asked


async def test_a_worker_that_cannot_be_forked_is_tried_again_then_given_up(no_processes):
    """R7: a system that is out of processes is a failed boot; no descriptor is left behind."""
    given_up: asyncio.Future[TdRuntimeError] = asyncio.get_running_loop().create_future()
    pool = WorkerPool(
        1,
        body=lambda number, sock, ring: 0,
        secret=Secret("tr_prod_x"),
        sink=Sink(),  # type: ignore[arg-type]
        events=WorkerEvents(
            on_message=lambda worker, message: None,
            on_ready=lambda worker: None,
            on_gone=lambda worker: None,
            on_given_up=given_up.set_result,
        ),
        loop=asyncio.get_running_loop(),
    )
    before = len(os.listdir("/proc/self/fd"))

    pool.start()
    error = await given_up
    await pool.drain(1.0)

    assert isinstance(error, TooManyRestartsError)
    assert "worker 1 died 5 times" in error.what
    assert no_processes == ["td-worker-1"] * 5
    assert len(os.listdir("/proc/self/fd")) == before
