"""One writing process: the runtime thread of a worker, and a main thread that writes.

The pieces are a worker's: `CredentialCache`, `ControlPlane`, `StreamStore` and `StreamClient`.
There is no supervisor, so no notices: what the others evict must be found out by failing (C8).
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import secrets
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import structlog

from td_sharedcache import CredentialCache, Slot
from td_worker.context import AttemptInfo, Execution, RunInfo, TaskInfo, executing
from td_worker.control_plane import ControlPlane
from td_worker.errors import StreamWriteError
from td_worker.stream_store import StreamStore
from td_worker.streams import blocking
from td_worker.streams.client import StreamClient
from td_worker.testing import LoopThread
from tests.chaos.arena import Arena
from tests.chaos.diary import Diary, DiaryReader
from tests.chaos.plan import steps_of
from tests.chaos.watched import WatchedCache, WatchedMinter, WatchedTransport, note_event

_PR_SET_PDEATHSIG = 1


def write_and_leave(arena: Arena, writer: int, harness: int) -> None:
    """Be the writing process; never returns.

    Args:
        arena: Where.
        writer: Which one; a process that replaces a killed one keeps its number.
        harness: The parent, whose death ends this process.
    """
    code = 1
    try:
        _settle_in(arena, writer, harness)
        diary = Diary(arena.diaries / f"writer-{writer:02}-{os.getpid()}.jsonl")
        try:
            _write(arena, writer, diary)
            code = 0
        except BaseException:
            traceback.print_exc()
    finally:
        os._exit(code)


def _settle_in(arena: Arena, writer: int, harness: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != harness:
        os._exit(1)
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    out = os.open(
        arena.output / f"writer-{writer:02}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
    )
    os.dup2(out, 1)
    os.dup2(out, 2)
    # Also the gateway's control socket, which would outlive the harness in here.
    os.closerange(3, 1024)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(),
            # The whole text of every exception, for the search for tokens.
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=repr),
        ],
    )


def _write(arena: Arena, writer: int, diary: Diary) -> None:
    acked = _acked_before(arena, writer)
    diary.note("writer.started", writer=writer, acked=sum(acked.values()))
    with _open_client(arena, writer, diary) as client, _in_a_run(client):
        desk = _Desk(writer, diary, acked)
        for step in steps_of(arena.scale, writer):
            if all(acked.get(slot, 0) >= target for slot, target in step.targets.items()):
                continue
            # The pace is the load: without it all would be over before the first attack.
            time.sleep(max(0.0, arena.starts_at + step.due - time.time()))
            while not desk.write(step.targets):
                pass
        desk.close()
    diary.note("writer.finished", writer=writer)


def _acked_before(arena: Arena, writer: int) -> dict[Slot, int]:
    """Give what earlier processes of this writer got acked, by slot."""
    acked: dict[Slot, int] = {}
    for entry in DiaryReader(arena.diaries, f"writer-{writer:02}-*.jsonl").news():
        if entry["what"] == "records.acked":
            slot = Slot(entry["slot"])
            acked[slot] = max(acked.get(slot, 0), entry["upto"])

    return acked


@contextmanager
def _open_client(arena: Arena, writer: int, diary: Diary) -> Iterator[StreamClient]:
    with LoopThread() as thread:
        http = httpx.AsyncClient(transport=WatchedTransport(diary), trust_env=False)
        plane = ControlPlane(arena.url, arena.secret_key, client=http)
        cache = CredentialCache(
            arena.credentials,
            origin=arena.url,
            api_key=arena.secret_key,
            minter=WatchedMinter(plane, diary, arena.board, writer),
            max_age=arena.scale.max_age,
            on_event=partial(note_event, diary),
            policy=arena.scale.policy,
        )
        store = StreamStore()
        diary.note("pieces.shown", shown=[repr(piece) for piece in (plane, cache, store, http)])
        client = StreamClient(
            thread.loop, cache=WatchedCache(cache, diary), store=store, control_plane=plane
        )
        try:
            yield client
        finally:
            for ending in (client.close(), store.close(), http.aclose()):
                thread.run(ending)
            diary.note("cache.counted", **cache.stats)
            cache.close()


@contextmanager
def _in_a_run(client: StreamClient) -> Iterator[None]:
    execution = Execution(
        run=RunInfo(id="chaos"),
        attempt=AttemptInfo(number=1),
        task=TaskInfo(id="write"),
        streams=client,
    )
    with executing(execution):
        yield


class _Sheet:
    """One stream writer of this process; its records are numbered on from `start`."""

    def __init__(self, slot: Slot, start: int) -> None:
        run_id, key = slot.parts
        self.id = secrets.token_hex(6)
        self.start = start
        self.written = start
        self.stream = blocking.writer(key, target=run_id)

    def write_up_to(self, target: int, writer: int) -> None:
        """Write what is missing, without waiting for acks."""
        while self.written < target:
            self.stream.write({"writer": writer, "sheet": self.id, "n": self.written})
            self.written += 1


class _Desk:
    """The open stream writers of the process, one a slot, and what is acked."""

    def __init__(self, writer: int, diary: Diary, acked: dict[Slot, int]) -> None:
        self._writer = writer
        self._diary = diary
        self._acked = acked
        self._sheets: dict[Slot, _Sheet] = {}

    def write(self, targets: dict[Slot, int]) -> bool:
        """Write to several slots at once; tells whether all is acked now."""
        written = [
            slot
            for slot, target in targets.items()
            if self._try(slot, partial(self._fill, slot, target))
        ]
        acked = [slot for slot in written if self._try(slot, partial(self._await_acks, slot))]

        return len(acked) == len(targets)

    def close(self) -> None:
        """End all writers; everything is acked already."""
        for sheet in self._sheets.values():
            sheet.stream.wait()

    def _fill(self, slot: Slot, target: int) -> None:
        if slot not in self._sheets:
            sheet = self._sheets[slot] = _Sheet(slot, self._acked.get(slot, 0))
            self._diary.note("sheet.opened", sheet=sheet.id, slot=slot, start=sheet.start)
        self._sheets[slot].write_up_to(target, self._writer)

    def _await_acks(self, slot: Slot) -> None:
        sheet = self._sheets[slot]
        sheet.stream.flush()
        self._note_acked(slot, sheet.written)

    def _try(self, slot: Slot, work: Callable[[], None]) -> bool:
        try:
            work()
        except StreamWriteError as error:
            sheet = self._sheets.pop(slot)
            self._note_acked(slot, sheet.start + error.acked, sheet)
            self._diary.note(
                "sheet.failed", sheet=sheet.id, slot=slot, error=traceback.format_exc()
            )
            return False

        return True

    def _note_acked(self, slot: Slot, upto: int, sheet: _Sheet | None = None) -> None:
        sheet = sheet or self._sheets[slot]
        self._acked[slot] = max(upto, self._acked.get(slot, 0))
        self._diary.note("records.acked", slot=slot, sheet=sheet.id, upto=upto)
