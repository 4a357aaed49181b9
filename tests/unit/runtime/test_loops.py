"""Replicas that come and go while something else happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from td_runtime import loops as loops_module
from td_runtime.dispatch import Dispatcher
from td_runtime.errors import StoreError
from td_runtime.loops import Loops
from td_runtime.store import Accepted, NewRun, RunStore, Status, StoreFullError, open_store
from td_worker.messages import TriggerItem


class Slow:
    """A dispatcher that accepts when it is let, and executes nothing."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self.is_asked = asyncio.Event()
        self.may_accept = asyncio.Event()
        self.refusals: list[StoreFullError] = []

    async def accept(self, items: list[TriggerItem], **_: Any) -> list[Accepted]:
        self.is_asked.set()
        await self.may_accept.wait()
        return await self._store.accept(
            [NewRun(task=item.task, payload=item.payload, tags=item.tags) for item in items]
        )

    async def cancel(self, run_ids: list[str], *, by: str) -> object:
        if self.refusals:
            raise self.refusals.pop()
        return await self._store.cancel(run_ids, by=by)

    async def finished(self, run_ids: list[str]) -> list[Any]:
        assert run_ids
        return await asyncio.Future()


class Forgetful(Slow):
    """A dispatcher whose runs are deleted as soon as they have ended."""

    def __init__(self, store: RunStore) -> None:
        super().__init__(store)
        self.may_accept.set()
        self.accepted: asyncio.Queue[str] = asyncio.Queue()

    async def accept(self, items: list[TriggerItem], **more: Any) -> list[Accepted]:
        found = await super().accept(items, **more)
        self.accepted.put_nowait(found[0].id)
        return found

    async def finished(self, run_ids: list[str]) -> list[Any]:
        await self._store.cancel(run_ids)
        await self._store.prune(finished_before=float("inf"), keep=0)
        return await self._store.get_many(run_ids)


@pytest.fixture(name="store")
async def _store(tmp_path: Path) -> AsyncIterator[RunStore]:
    async with open_store(tmp_path / "runs.db") as store:
        yield store


async def test_a_replica_that_is_being_accepted_is_not_left_behind(store: RunStore) -> None:
    """A loop that a reload takes away in that moment is canceled, and not run by nobody's wish."""
    slow = Slow(store)
    failures: list[BaseException] = []
    loops = Loops(store, cast("Dispatcher", slow), on_failed=failures.append)
    await loops.keep({"spin": 1})
    await slow.is_asked.wait()

    reload = asyncio.create_task(loops.keep({}))
    await asyncio.sleep(0)
    slow.may_accept.set()
    await reload

    assert {status: n for status, n in (await store.counts()).items() if n} == {Status.CANCELED: 1}
    assert not failures


async def test_a_keeper_that_fails_is_told(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that cannot be read ends the supervisor, and not silently the loop alone."""
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def broken(_: object) -> None:
        raise StoreError("the disk is gone")

    loops = Loops(store, cast("Dispatcher", Slow(store)), on_failed=failed.set_result)
    await loops.keep({})
    monkeypatch.setattr(store, "find", broken)
    keeping = asyncio.create_task(loops._keep("spin", 1))
    keeping.add_done_callback(loops._ended)

    assert isinstance(await failed, StoreError)


async def test_a_replica_that_is_deleted_as_it_ends_is_followed_by_another(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `retention_count = 0` nobody may ever see how it ended; the loop goes on."""
    monkeypatch.setattr(loops_module, "_REFUSED_PAUSE", 0.0)
    dispatcher = Forgetful(store)
    failures: list[BaseException] = []
    loops = Loops(store, cast("Dispatcher", dispatcher), on_failed=failures.append)
    await loops.keep({"spin": 1})
    async with asyncio.timeout(30):
        first, second = await dispatcher.accepted.get(), await dispatcher.accepted.get()
    loops.stop()

    assert first != second
    assert failures == []


async def test_a_replica_too_many_goes_when_the_disk_has_room(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload on a full disk tries to cancel it until it can."""
    monkeypatch.setattr(loops_module, "_REFUSED_PAUSE", 0.0)
    slow = Slow(store)
    slow.may_accept.set()
    failures: list[BaseException] = []
    loops = Loops(store, cast("Dispatcher", slow), on_failed=failures.append)
    await loops.keep({"spin": 1})
    await slow.is_asked.wait()

    slow.refusals = [StoreFullError("no space left") for _ in range(2)]
    await loops.keep({})

    assert {status: n for status, n in (await store.counts()).items() if n} == {Status.CANCELED: 1}
    assert failures == []
