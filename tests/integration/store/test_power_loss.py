"""The run store after a power loss: what the disk holds then, made of what it held at a moment.

A writer is stopped at random moments and its files are copied. The kernel has promised what was
synced: the WAL up to the last commit that was told, and the pages of the main file that no frame
of the WAL replaces. Everything else may be anything, so it is torn, cut or overwritten here.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
from td_runtime.store.check import check
from tests.integration.store.test_crash import run_child, say

MOMENTS = 12
PAGE = 4096
WAL_HEADER, FRAME_HEADER = 32, 24
MX_FRAME_AT = 16  # in the header of the -shm
QUEUES = {"task/a": QueueLimits(per_key=2)}


async def write_for_ever(path: Path, out: int) -> None:
    """Accept and finish runs of many sizes; tell each id once it is accepted, or finished."""
    owner = f"w{os.getpid()}"
    dice = random.Random(os.getpid())

    async def accept(store: RunStore) -> None:
        while True:
            batch = [
                NewRun(
                    task="a",
                    payload=b" " * dice.choice([2, 50, 9000]),
                    tags=("t",),
                    concurrency_key=dice.choice([None, "x", "y"]),
                )
            ] * dice.randint(1, 20)
            for answer in await store.accept(batch):
                say(out, "accepted", answer.id)

    async def work(store: RunStore) -> None:
        while True:
            runs = await store.claim([Place(owner, 1)] * 10, queues=QUEUES, now=4e9)
            for run in runs:
                assert await store.finish(run.id, run.attempt, owner, Completed(b"1"))
                say(out, "finished", run.id)
            await store.prune(finished_before=None, keep=10**6)

    async with open_store(path) as store:
        await store.requeue_unfinished()
        await asyncio.gather(accept(store), accept(store), work(store))


class Writer:
    """The writing process, and what it has told so far."""

    def __init__(self, path: Path) -> None:
        self._out, child_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._out)
            run_child(lambda out: write_for_ever(path, out), child_end)
        os.close(child_end)
        os.set_blocking(self._out, False)
        self._rest = b""
        self.accepted: set[str] = set()
        self.finished: set[str] = set()

    def run(self, seconds: float) -> None:
        """Let it write, and listen."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            select.select([self._out], [], [], left)
            self._listen()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Hold it still, having heard all it has told."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)
        self._listen()
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._out)

    def _listen(self) -> None:
        try:
            while data := os.read(self._out, 1 << 16):
                self._rest += data
        except BlockingIOError:
            pass
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            what, run_id = line.decode().split()
            (self.accepted if what == "accepted" else self.finished).add(run_id)


class Disk:
    """The bytes of a store's files at one moment, and which of them are sure."""

    def __init__(self, path: Path) -> None:
        self.main = path.read_bytes()
        self.wal = path.with_name("runs.db-wal").read_bytes()
        shm = path.with_name("runs.db-shm").read_bytes()
        (frames,) = struct.unpack_from("=I", shm, MX_FRAME_AT)
        self.sure = WAL_HEADER + frames * (FRAME_HEADER + PAGE)
        self.replaced = [
            struct.unpack_from(">I", self.wal, at)[0]
            for at in range(WAL_HEADER, self.sure, FRAME_HEADER + PAGE)
        ]

    def lose_power(self, dice: random.Random, path: Path) -> None:
        """Write files as they may be afterwards."""
        main, wal = bytearray(self.main), bytearray(self.wal)
        for page in set(self.replaced):
            if dice.random() < 0.5:  # it was being checkpointed
                at = (page - 1) * PAGE + dice.choice([0, 512, 2048])
                main[at : page * PAGE] = dice.randbytes(max(0, page * PAGE - at))
        cut = dice.randint(min(self.sure, len(wal)), len(wal))
        match dice.randrange(3):
            case 0:
                del wal[cut:]
            case 1:
                wal[cut:] = dice.randbytes(len(wal) - cut)
            case 2:
                wal[cut : cut + PAGE] = bytes(len(wal[cut : cut + PAGE]))
        path.write_bytes(main)
        path.with_name("runs.db-wal").write_bytes(wal)


async def statuses(path: Path) -> dict[str, Status]:
    """Start on what is left, and read every run."""
    async with open_store(path) as store:
        await store.requeue_unfinished()
        await store.reconsider(QUEUES)
    async with open_readonly(path) as reader:
        rows = reader._all("SELECT id, status FROM runs")  # type: ignore[attr-defined]
        return {run_id: Status(status) for run_id, status in rows}


def test_no_accepted_run_is_missing_after_a_power_loss(tmp_path):
    """R1, R5: whatever moment the power goes and whatever was half written, each run that was told
    accepted is there, each told finished is finished, and the store is whole."""  # noqa: D205, D209
    source = tmp_path / "runs.db"
    dice = random.Random(5)
    writer = Writer(source)
    torn = 0
    try:
        while not writer.accepted:
            writer.run(0.05)
        for moment in range(MOMENTS):
            writer.run(dice.random() * 0.08)
            with writer.stopped():
                disk = Disk(source)
                accepted, finished = set(writer.accepted), set(writer.finished)
            torn += len(disk.wal) > disk.sure
            folder = tmp_path / str(moment)
            folder.mkdir()
            disk.lose_power(dice, folder / "runs.db")

            found = asyncio.run(statuses(folder / "runs.db"))

            assert accepted <= found.keys()
            assert {found[run_id] for run_id in finished} <= {Status.COMPLETED}
            assert check(folder / "runs.db") == []
    finally:
        writer.end()

    assert len(writer.finished) > MOMENTS
    assert torn > 0
