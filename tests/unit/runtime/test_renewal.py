"""Replacing every worker in order, with children that are no processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from td_runtime import workers
from td_runtime.errors import TooManyRestartsError
from td_runtime.restart import RestartPolicy
from td_runtime.secret import Secret
from td_runtime.workers import Worker, WorkerEvents, WorkerPool, WorkerState
from td_worker.messages import Drain, FromSupervisor, Ready, decode_frames, encode_frame

_decoder = msgspec.msgpack.Decoder(FromSupervisor)


class FakeChild:
    """A process, as far as the pool can tell: an id, a descriptor that says its end, a socket."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.pidfd, self._end = os.pipe()
        self.status = 0
        self._sock = sock

    def say(self, message: msgspec.Struct) -> None:
        self._sock.sendall(encode_frame(message))

    def heard(self) -> list[Any]:
        self._sock.setblocking(False)
        data = bytearray(self._sock.recv(65_536))
        return [_decoder.decode(body) for body in decode_frames(data)]

    def exit(self, status: int) -> None:
        self.status = status
        os.close(self._end)
        self._sock.close()
        self._end = -1

    def kill_group(self) -> None:
        if self._end >= 0:
            self.exit(-9)

    def reap(self) -> int:
        os.close(self.pidfd)
        return self.status


class Sink:
    fd = 2

    def guard(self, group: int) -> bool:
        return True

    def unguard(self, group: int) -> bool:
        return True


class Pool:
    """A pool whose children are made, and end, as a test says."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.children: list[FakeChild] = []
        self.ready: list[int] = []
        self.died: dict[int, bool] = {}
        self.given_up: list[Any] = []
        self._sockets: list[socket.socket] = []
        monkeypatch.setattr(workers, "fork_child", self._fork)
        sink: Any = Sink()
        self.pool = WorkerPool(
            count,
            body=lambda number, sock, ring: self._sockets.append(sock.dup()) or 0,  # type: ignore[func-returns-value]
            secret=Secret("tr_prod_x"),
            sink=sink,
            events=WorkerEvents(
                on_message=lambda worker, message: None,
                on_ready=lambda worker: self.ready.append(worker.pid),
                on_gone=lambda worker: self.died.update({worker.pid: worker.died}),
                on_given_up=self.given_up.append,
            ),
            loop=asyncio.get_running_loop(),
            policy=RestartPolicy(min_delay=0.0),
        )

    def _fork(self, body: Callable[[], int], *, name: str, keep: Any) -> FakeChild:
        body()
        child = FakeChild(1000 + len(self.children), self._sockets.pop())
        self.children.append(child)
        return child

    async def start(self) -> None:
        self.pool.start()
        for child in list(self.children):
            await self.boot(child)

    async def boot(self, child: FakeChild) -> None:
        child.say(Ready(pid=child.pid))
        await self.until(lambda: child.pid in self.ready)

    def renew(self, count: int, drain_timeout: float = 60.0) -> asyncio.Task[None]:
        return asyncio.create_task(
            self.pool.renew(
                count, tasks=["new"], kill_silent_after=60.0, drain_timeout=drain_timeout
            )
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0)

    async def forked(self, count: int) -> None:
        await self.until(lambda: len(self.children) == count)

    def worker(self, child: FakeChild) -> Worker:
        return next(each for each in self.pool.workers.values() if each.pid == child.pid)

    def places(self) -> dict[int, int]:
        return {number: each.pid for number, each in self.pool.workers.items() if number > 0}

    async def end(self) -> None:
        await self.pool.kill()


@pytest.fixture
def descriptors() -> Iterator[None]:
    """No test leaves a descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # an event loop's own


async def test_each_works_until_the_one_for_its_place_is_ready(monkeypatch, descriptors):
    """One after another, and never fewer workers that take runs than there were."""
    pool = Pool(2, monkeypatch)
    await pool.start()
    one, two = pool.children
    renewed = pool.renew(2)
    await pool.forked(3)

    assert pool.places() == {1: one.pid, 2: two.pid}
    assert len(list(pool.pool.ready())) == 2
    await pool.boot(pool.children[2])
    await pool.forked(4)
    assert pool.worker(one).state is WorkerState.RETIRING
    assert Drain(timeout=60.0) in one.heard()
    assert len(list(pool.pool.ready())) == 2
    assert not renewed.done()

    await pool.boot(pool.children[3])
    await renewed
    assert pool.places() == {1: pool.children[2].pid, 2: pool.children[3].pid}
    one.exit(0)
    await pool.until(lambda: one.pid in pool.died)
    assert pool.died == {one.pid: False}
    assert pool.pool.restarts == {1: 0, 2: 0}
    assert [each.tasks for each in pool.pool.ready()] == [frozenset({"new"})] * 2
    await pool.end()


async def test_new_workers_that_die_at_boot_end_the_renewal(monkeypatch, descriptors):
    """Five in a row: the old one goes on working, and the next renewal begins anew."""
    pool = Pool(1, monkeypatch)
    await pool.start()
    renewed = pool.renew(1)
    for count in range(2, 7):
        await pool.forked(count)
        pool.children[-1].exit(1)
    with pytest.raises(TooManyRestartsError):
        await renewed

    assert pool.places() == {1: pool.children[0].pid}
    assert pool.worker(pool.children[0]).state is WorkerState.READY
    assert pool.given_up == []
    renewed = pool.renew(1)
    await pool.forked(7)
    await pool.boot(pool.children[-1])
    await renewed
    await pool.end()


async def test_an_old_worker_that_dies_leaves_its_place_to_the_one_that_boots(
    monkeypatch, descriptors
):
    """No third one is forked for it."""
    pool = Pool(1, monkeypatch)
    await pool.start()
    renewed = pool.renew(1)
    await pool.forked(2)
    pool.children[0].exit(-9)
    await pool.until(lambda: pool.places() == {1: pool.children[1].pid})
    await pool.boot(pool.children[1])
    await renewed

    assert len(pool.children) == 2
    assert pool.died == {pool.children[0].pid: True}
    await pool.end()


async def test_fewer_and_more_workers(monkeypatch, descriptors):
    """One whose place is gone leaves with its runs; one that is new is forked at once."""
    pool = Pool(2, monkeypatch)
    await pool.start()
    renewed = pool.renew(1)
    await pool.forked(3)
    assert pool.worker(pool.children[1]).state is WorkerState.RETIRING
    await pool.boot(pool.children[2])
    await renewed
    assert pool.places() == {1: pool.children[2].pid}

    renewed = pool.renew(2)
    await pool.forked(4)
    await pool.boot(pool.children[3])
    await pool.forked(5)
    await pool.boot(pool.children[4])
    await renewed
    assert pool.places() == {2: pool.children[3].pid, 1: pool.children[4].pid}
    await pool.end()


async def test_one_that_does_not_leave_in_time_is_killed_and_its_run_not_blamed(
    monkeypatch, descriptors
):
    """After drain_timeout and the grace that cancelled runs have."""
    monkeypatch.setattr(workers, "_KILL_GRACE", 0.01)
    pool = Pool(1, monkeypatch)
    await pool.start()
    renewed = pool.renew(1, drain_timeout=0.01)
    await pool.forked(2)
    await pool.boot(pool.children[1])
    await renewed

    await pool.until(lambda: pool.children[0].pid in pool.died)
    assert pool.died == {pool.children[0].pid: False}
    assert pool.children[0].status == -9
    await pool.end()


async def test_a_stop_ends_a_renewal(monkeypatch, descriptors):
    """A drain in the middle of it waits for nobody to boot."""
    pool = Pool(1, monkeypatch)
    await pool.start()
    renewed = pool.renew(1)
    await pool.forked(2)
    draining = asyncio.create_task(pool.pool.drain(60.0))
    await renewed
    pool.children[0].exit(0)
    await draining

    assert pool.children[1].status == -9
    assert pool.pool.workers == {}
