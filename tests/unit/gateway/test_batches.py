"""What is told of a batch without a supervisor: from the files alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from td_runtime.gateway.exchange import Exchange, Reply
from td_runtime.gateway.platform import batch_routes, run_batches
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.platform.batch_routes import BatchRoutes
from td_runtime.gateway.platform.run_batches import RunBatches
from td_runtime.gateway.platform.run_routes import RunRoutes
from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.uploads import Uploads
from td_runtime.store import Completed, NewRun, Place, QueueLimits, RunStore, open_store

OUTPUT = b'"' + b"x" * 100 + b'"'


class Batches:
    """A batch of three runs, whose routes are asked with the secret key."""

    def __init__(self, store: RunStore, batches: RunBatches, routes: BatchRoutes) -> None:
        self.store = store
        self.batches = batches
        self.routes = routes
        self.id = ""
        self.runs: list[str] = []

    async def make(self) -> None:
        batch, _ = await self.batches.create(3, None)
        accepted = await self.store.accept([NewRun(task="a") for _ in range(3)])
        self.id, self.runs = batch.id, [one.id for one in accepted]
        await self.batches.add(batch.id, dict(enumerate(self.runs)))

    async def finish(self, count: int) -> None:
        places = [Place("w", 1)] * count
        for run in await self.store.claim(places, queues={"task/a": QueueLimits()}, now=2e9):
            await self.store.finish(run.id, run.attempt, "w", Completed(output=OUTPUT))

    async def status(self) -> str:
        return str(read(await self.routes.retrieve(request(), self.id))["status"])

    async def results(self) -> Reply:
        return await self.routes.results(request(), self.id)


def request() -> Exchange:
    scope = {
        "method": "GET",
        "raw_path": b"/",
        "headers": [(b"authorization", b"Bearer key")],
    }
    return Exchange(scope, None, None)  # type: ignore[arg-type]


def read(reply: Reply) -> Any:
    return json.loads(reply.body)


@pytest.fixture(name="batches")
async def _batches(storage: Storage, tmp_path: Path) -> AsyncIterator[Batches]:
    path = tmp_path / "runs.db"
    async with open_store(path) as store:
        stored, access = RunBatches(storage), Access("key")
        link: Any = None
        uploads = Uploads(tmp_path / "uploads")
        runs = RunRoutes(access=access, store=path, link=link, batches=stored, uploads=uploads)
        routes = BatchRoutes(access=access, link=link, batches=stored, runs=runs, uploads=uploads)
        batches = Batches(store, stored, routes)
        await batches.make()
        yield batches
        stored.close()
        reader = runs.reader()
        assert reader is not None
        await reader.close()


async def test_a_batch_is_completed_when_all_of_its_runs_have_ended(batches: Batches) -> None:
    """One that has not keeps it PROCESSING; one that was deleted has ended."""
    before = await batches.status()
    await batches.finish(2)
    between = await batches.status()
    await batches.finish(1)
    after = await batches.status()
    await batches.store.prune(finished_before=None, keep=1)

    assert [before, between, after] == ["PROCESSING", "PROCESSING", "COMPLETED"]
    assert await batches.status() == "COMPLETED"


async def test_results_are_told_up_to_a_size(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the runs that have ended; 413 when they are more than fit into memory with ease."""
    monkeypatch.setattr(batch_routes, "RESULTS_BYTES_MAX", 2 * len(OUTPUT))
    await batches.finish(2)
    found = read(await batches.results())["items"]
    await batches.finish(1)
    refused = await batches.results()

    assert [(one["id"], one["output"]) for one in found] == [
        (run_id, OUTPUT.decode()) for run_id in batches.runs[:2]
    ]
    assert refused.status == 413
    assert b"/api/v1/runs/<run>/result" in msgspec.json.encode(read(refused))


async def test_a_large_batch_is_read_in_pieces(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order and all of them, while others get their turn."""
    monkeypatch.setattr(run_batches, "RUNS_AT_ONCE", 2)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    found = await batches.batches.runs(batches.id)
    other.cancel()

    assert found == dict(enumerate(batches.runs))
    assert turns == 2


async def test_old_batches_are_forgotten_in_steps(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that they know of their runs; a batch whose time is not over stays."""
    monkeypatch.setattr(run_batches, "RUNS_AT_ONCE", 2)
    await batches.batches.forget_old()
    kept = await batches.batches.runs(batches.id)
    monkeypatch.setattr(run_batches, "KEPT_MS", -1000)
    await batches.batches.forget_old()

    assert len(kept) == 3
    assert batches.batches.find(batches.id) is None
    assert await batches.batches.runs(batches.id) == {}
    assert batches.batches.batch_of(batches.runs[0]) is None
