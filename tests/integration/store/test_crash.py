"""The run store under SIGKILL: real forks, a real file, and a pipe that carries what was told.

What a process was told is what it wrote into the pipe before it died; the store that is opened
after it must agree.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from td_runtime.store import (
    Completed,
    NewRun,
    Place,
    QueueLimits,
    RunStore,
    Status,
    open_readonly,
    open_store,
)

ROUNDS = 12
LATE = 4e9
QUEUES = {"task/a": QueueLimits()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def run_child(body: Callable[[int], Coroutine[Any, Any, None]], out: int) -> NoReturn:
    """Run a coroutine in a loop of its own; leave without touching anything of the parent."""
    status = 1
    try:
        asyncio.run(body(out))
        status = 0
    finally:
        os._exit(status)


class Child:
    """A forked process, and the lines it writes."""

    def __init__(self, body: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        out, child_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(out)
            run_child(body, child_end)
        os.close(child_end)
        self._lines = os.fdopen(out)

    def read(self, count: int) -> list[str]:
        """Wait for so many lines."""
        return [self._lines.readline().rstrip("\n") for _ in range(count)]

    def kill(self) -> list[str]:
        """End it with SIGKILL, and return the lines that it had still written."""
        os.kill(self.pid, signal.SIGKILL)
        rest = self._lines.read()
        self._lines.close()
        assert os.WTERMSIG(os.waitpid(self.pid, 0)[1]) == signal.SIGKILL
        self.pid = 0

        # A line is far shorter than PIPE_BUF: it is written whole or not at all.
        return rest.splitlines()

    def wait(self) -> int:
        """Wait for its own end, and return its exit code."""
        self._lines.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0

        return code


@contextmanager
def child(body: Callable[[int], Coroutine[Any, Any, None]]) -> Iterator[Child]:
    """Fork a child that does not outlive the test."""
    forked = Child(body)
    try:
        yield forked
    finally:
        if forked.pid:
            forked.kill()


def say(out: int, *words: str) -> None:
    """Write one line at once."""
    os.write(out, (" ".join(words) + "\n").encode())


async def accept_for_ever(path: Path, out: int) -> None:
    """Eight triggers at a time, in batches of one to three; each id is told once accepted."""

    async def trigger(store: RunStore, seed: int) -> None:
        sizes = random.Random(seed)
        while True:
            batch = [NewRun(task="a", payload=b'"x"')] * sizes.randint(1, 3)
            for answer in await store.accept(batch):
                say(out, answer.id)

    async with open_store(path) as store:
        await asyncio.gather(*[trigger(store, seed) for seed in range(8)])


def test_every_accepted_run_survives(path):
    """R1: whatever moment SIGKILL comes, each id that was told is in the reopened store, queued,
    and is handed out."""  # noqa: D205, D209
    moments = random.Random(20)
    told: list[str] = []
    for _ in range(ROUNDS):
        with child(lambda out: accept_for_ever(path, out)) as writer:
            told += writer.read(moments.randint(1, 400))
            told += writer.kill()

    found = asyncio.run(ready_runs(path))

    assert len(set(told)) == len(told) > ROUNDS
    assert set(told) <= set(found)


async def ready_runs(path: Path) -> list[str]:
    """Reopen the store, take over, and hand out everything."""
    async with open_store(path) as store:
        await store.requeue_unfinished()
        runs = await store.claim(
            [Place("next", 1)] * await store.unfinished(), queues=QUEUES, now=LATE
        )

    return [run.id for run in runs]


def test_who_is_told_can_be_believed(path):
    """The moment an id arrives another process reads that run: it was told after the commit."""

    async def look(ids: list[str]) -> list[Status]:
        async with open_readonly(path) as reader:
            return [run.status for run in await reader.get_many(ids)]

    with child(lambda out: accept_for_ever(path, out)) as writer:
        for _ in range(50):
            assert asyncio.run(look(writer.read(1))) == [Status.QUEUED]


async def work_for_ever(path: Path, out: int) -> None:
    """Accept, hand out and finish; tell each hand-out and each recorded outcome."""
    owner = f"w{os.getpid()}"
    async with open_store(path) as store:
        await store.requeue_unfinished()
        while True:
            await store.accept([NewRun(task="a")] * 8)
            runs = await store.claim([Place(owner, 1)] * 5, queues=QUEUES, now=LATE)
            for run in runs:
                say(out, "claimed", run.id, str(run.attempt))
            finishes = [
                (run.id, store.finish(run.id, run.attempt, owner, Completed(run.id.encode())))
                for run in runs[:3]
            ]
            for run_id, finished in finishes:
                assert await finished
                say(out, "finished", run_id)


def test_every_told_outcome_survives_and_the_rest_starts_again(path):
    """R5, R8: after each SIGKILL the next supervisor finds what was told finished as finished, and
    requeues the rest with no attempt counted."""  # noqa: D205, D209
    moments = random.Random(21)
    lines: list[list[str]] = []
    for _ in range(ROUNDS):
        with child(lambda out: work_for_ever(path, out)) as worker:
            lines += [line.split() for line in worker.read(moments.randint(1, 200))]
            lines += [line.split() for line in worker.kill()]

    finished = {line[1] for line in lines if line[0] == "finished"}
    claims = [(line[1], line[2]) for line in lines if line[0] == "claimed"]
    asyncio.run(check_after_work(path, finished, {run_id for run_id, _ in claims}))

    assert len(set(claims)) == len(claims), "no attempt was handed out twice"
    assert len(finished) > ROUNDS


async def check_after_work(path: Path, finished: set[str], claimed: set[str]) -> None:
    """Hold the store against what was told."""
    async with open_store(path) as store:
        await store.requeue_unfinished()
        for run in await store.get_many(claimed):
            if run.status is Status.COMPLETED:
                assert run.output == run.id.encode()
                assert run.attempts_used == 1
            else:
                assert run.id not in finished
                assert (run.status, run.attempts_used) == (Status.QUEUED, 0)
        assert len(await store.get_many(claimed | finished)) == len(claimed)
        counts = await store.counts()
        assert (counts[Status.EXECUTING], counts[Status.WAITING]) == (0, 0)


def test_a_crash_in_the_first_moment_leaves_a_usable_store(path):
    """SIGKILL while the file is being made: the next open makes it, or finishes it."""

    async def open_and_say(out: int) -> None:
        say(out, "opening")
        async with open_store(path):
            say(out, "open")
            await asyncio.Event().wait()

    moments = random.Random(22)
    for _ in range(ROUNDS):
        with child(open_and_say) as opener:
            opener.read(1)
            # Spin, not sleep: the moment itself is the input, somewhere within the opening.
            until = time.perf_counter() + moments.random() * 0.01
            while time.perf_counter() < until:
                pass
            opener.kill()
        assert asyncio.run(ready_runs(path)) == []
        for each in path.parent.iterdir():
            each.unlink()


def test_a_forked_child_does_not_disturb_its_parents_store(path):
    """A worker inherits the open store; what it does with it and how it ends changes nothing."""

    async def close_and_forget(store: RunStore) -> None:
        await store.close()

    async def parent() -> None:
        async with open_store(path) as store:
            (first,) = await store.accept([NewRun(task="a")])
            pid = os.fork()
            if pid == 0:
                leave_as_a_careless_child(close_and_forget(store))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            wal = path.with_name("runs.db-wal")
            assert wal.exists(), "SQLite in the child believed to be the last user"
            (second,) = await store.accept([NewRun(task="a")])
            async with open_readonly(path) as reader:
                found = await reader.get_many([first.id, second.id])
            assert [first.id, second.id] == [run.id for run in found]

    asyncio.run(parent())


def leave_as_a_careless_child(body: Coroutine[Any, Any, None]) -> NoReturn:
    """Do what a child should not do with an inherited store, and leave."""
    status = 1
    try:
        body.send(None)
    except StopIteration:
        status = 0
    finally:
        os._exit(status)
