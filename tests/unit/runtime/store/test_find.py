from __future__ import annotations

import random
from typing import Any

import pytest

from td_runtime.store import Completed, Failed, NewRun, RunQuery, RunSummary, Status, open_readonly
from tests.unit.runtime.store.helpers import BOOM, FAR, accept, claim, claimed, places, queues
from tests.unit.runtime.store.test_claim import counting

TAGS = ("red", "blue")


async def history(store, clock, *, seed: int = 7) -> list[str]:
    """Accept runs of all kinds, and bring them into every state."""
    dice = random.Random(seed)
    ids: list[str] = []
    for _ in range(120):
        clock.now += 1
        new = NewRun(
            task=dice.choice("abc"),
            tags=tuple(dice.sample(TAGS, dice.randint(0, 2))),
            queue=dice.choice([None, None, "shared"]),
            parent_id=dice.choice([None, *ids[-3:]]),
            run_at=dice.choice([None, None, None, FAR]),
        )
        ids += [each.id for each in await store.accept([new])]
    shared = {**queues(a=None, b=None, c=None), "shared": queues()["task/a"]}
    for run in await store.claim(places(80), queues=shared, now=clock.now):
        end = dice.randrange(5)
        if end < 2:
            await store.finish(run.id, 1, "w1", Completed() if end else Failed(BOOM))
        elif end == 2:
            await store.retry(run.id, 1, "w1", run_at=FAR, error=BOOM)
        elif end == 3:
            await store.wait(run.id, 1, "w1")
    await store.cancel(ids[:5])
    return ids


def matches(run: RunSummary, query: RunQuery) -> bool:
    """What a query means, said once more."""
    return all(
        (
            not query.statuses or run.status in query.statuses,
            not query.tasks or run.task in query.tasks,
            query.tag is None or query.tag in run.tags,
            query.queue is None or run.queue == query.queue,
            query.parent_id is None or run.parent_id == query.parent_id,
            query.since is None or run.created_at >= query.since,
            query.until is None or run.created_at < query.until,
        )
    )


def some_query(dice: random.Random, ids: list[str], start: float) -> RunQuery:
    """A query with any of the conditions."""

    def maybe(value: Any, otherwise: Any = None) -> Any:
        return value if dice.random() < 0.3 else otherwise

    return RunQuery(
        statuses=maybe(frozenset(dice.sample(list(Status), 3)), frozenset()),
        tasks=maybe(frozenset(dice.sample("abcd", 2)), frozenset()),
        tag=maybe(dice.choice(TAGS)),
        queue=maybe(dice.choice(["shared", "task/a"])),
        parent_id=maybe(dice.choice(ids)),
        since=maybe(start + dice.random() * 120),
        until=maybe(start + dice.random() * 120),
        limit=dice.randint(1, 20),
    )


@pytest.mark.parametrize("seed", range(4))
async def test_any_query_finds_what_it_says(store, clock, seed):
    """Whatever conditions come together: all that meet them, newest first, page by page, once."""
    start = clock.now
    ids = await history(store, clock, seed=seed)
    everything = await store.find(RunQuery(limit=1000))
    assert [run.id for run in everything] == ids[::-1]
    dice = random.Random(seed)
    for _ in range(150):
        query = some_query(dice, ids, start)
        expected = [run for run in everything if matches(run, query)]

        assert await pages(store, query) == expected


async def pages(store, query: RunQuery) -> list[RunSummary]:
    """Turn all pages of a query, and back to the one before the last."""
    import msgspec

    found: list[RunSummary] = []
    last: list[RunSummary] = []
    while page := await store.find(query):
        assert len(page) <= query.limit
        if last:
            back = msgspec.structs.replace(query, before=None, after=page[0].id)
            assert await store.find(back) == last
        found += page
        last = page
        query = msgspec.structs.replace(query, before=page[-1].id)
    return found


async def test_a_page_is_found_without_a_supervisor(store, path):
    """Another process reads lists and counts, with nobody's help and without the payloads."""
    ids = await accept(store, "a", "b", "c")
    await store.close()

    async with open_readonly(path) as reader:
        assert [each.id for each in await reader.find(RunQuery())] == ids[::-1]
        assert (await reader.counts())[Status.QUEUED] == 3


async def test_a_cursor_whose_run_is_gone_still_cuts(store, clock):
    """The page after a run that was pruned meanwhile begins where it would have."""
    ids = []
    for _ in range(5):
        run = await claimed(store)
        await store.finish(run.id, 1, "w1", Completed())
        ids.append(run.id)
        clock.now += 1
    await store.prune(finished_before=clock.now - 2.5, keep=None)

    assert [run.id for run in await store.find(RunQuery(before=ids[3]))] == []
    assert [run.id for run in await store.find(RunQuery(after=ids[1]))] == ids[:2:-1]


async def test_history_is_not_searched(store, path):
    """Counts, and the rarest page, cost the same after 3,000 finished runs as after three."""
    for _ in range(6):
        await store.accept([NewRun(task="a")] * 500)
        for run in await claim(store, 500):
            store.finish(run.id, 1, "w1", Completed())
    run = await claimed(store, "b")
    await store.finish(run.id, 1, "w1", Failed(BOOM))
    (queued,) = await store.accept([NewRun(task="a", tags=("rare",))])
    steps, reader = counting(path)
    from td_runtime.store import sqlite_text as sql
    from td_runtime.store.sqlite_find import find

    reader.execute(sql.COUNTS).fetchall()
    for query in (
        RunQuery(statuses=frozenset({Status.FAILED})),
        RunQuery(statuses=frozenset({Status.QUEUED})),
        RunQuery(tag="rare"),
        RunQuery(tasks=frozenset({"b"})),
    ):
        assert {each.id for each in find(reader, query)} <= {run.id, queued.id}
        assert len(find(reader, query)) == 1
    reader.close()
    assert steps.count < 3000


async def test_ids_stay_in_order_over_a_restart_with_a_clock_that_went_back(path):
    """Pages are cut by id, so a later run has the greater id, whatever the clock says."""
    from td_runtime.store.sqlite import SqliteRunStore

    async with SqliteRunStore(path, clock=lambda: 2e9) as store:
        (first,) = await accept(store, "a")
    async with SqliteRunStore(path, clock=lambda: 1e9) as store:
        (second,) = await accept(store, "a")
        assert first < second
        assert [run.id for run in await store.find(RunQuery())] == [second, first]


async def test_the_beginning_of_an_id_finds_it(store):
    """All runs whose id begins so are named, an id is its own beginning, and nothing else is."""
    ids = await accept(store, *"abc")

    assert await store.ids_beginning_with("run_", limit=2) == ids[:2]
    assert await store.ids_beginning_with(ids[1], limit=2) == [ids[1]]
    assert await store.ids_beginning_with(ids[2] + "0", limit=2) == []
    assert await store.ids_beginning_with("run_!", limit=2) == []
    assert await store.ids_beginning_with("run_~", limit=2) == []
