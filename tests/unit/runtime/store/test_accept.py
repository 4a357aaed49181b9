from __future__ import annotations

from typing import Any

import pytest

from td_runtime.errors import ExitCode
from td_runtime.store import IDEMPOTENCY_TTL, Completed, NewRun, RunNotFoundError, Status
from tests.unit.runtime.store.helpers import FAR, accept, claim, claimed, reload


async def test_a_run_comes_back_as_it_was_accepted(store, clock):
    """The record holds the request; nothing has happened yet."""
    (answer,) = await store.accept([NewRun(task="a", payload='{"ü": "\u2028"}'.encode())])

    run = await reload(store, answer.id)

    assert answer.created
    assert ("a", Status.QUEUED, '{"ü": "\u2028"}'.encode()) == (run.task, run.status, run.payload)
    assert (run.id, None) == (run.root_id, run.parent_id)
    assert (clock.now, clock.now, None, None) == (
        run.created_at,
        run.run_at,
        run.started_at,
        run.finished_at,
    )
    assert (run.attempt, run.excused, run.crashes, run.records_lost) == (0, 0, 0, 0)
    assert (run.owner, run.pid, run.output, run.error) == (None, None, None, None)


async def test_nothing_is_accepted_from_nothing(store):
    """An empty request has an empty answer."""
    assert await store.accept([]) == []


async def test_answers_are_in_the_order_of_the_requests(store):
    """Also the ids sort in that order."""
    ids = await accept(store, *"abcdefgh")

    assert list("abcdefgh") == [run.task for run in await store.get_many(ids)]
    assert ids == sorted(ids)


async def test_megabytes_of_payload_is_kept(store):
    """Payloads of any size come back byte by byte."""
    payload = b'"' + bytes(range(32, 127)).replace(b'"', b"") * 100_000 + b'"'
    (answer,) = await store.accept([NewRun(task="a", payload=payload)])

    (run,) = await claim(store)

    assert (answer.id, payload) == (run.id, run.payload)


async def test_a_child_knows_its_root(store):
    """The root is the top of the tree, however deep the run is below it."""
    (root,) = await accept(store, "a")
    (child,) = await store.accept([NewRun(task="b", parent_id=root)])
    (grandchild,) = await store.accept([NewRun(task="c", parent_id=child.id)])
    await accept(store, "a")

    tree = await store.tree(root)

    assert [(root, None), (child.id, root), (grandchild.id, child.id)] == [
        (run.id, run.parent_id) for run in tree
    ]
    assert {root} == {run.root_id for run in tree}


async def test_a_tree_is_asked_for_by_its_root(store):
    """A run below the root is no tree's name, and neither is an unknown id."""
    (root,) = await accept(store, "a")
    await store.accept([NewRun(task="b", parent_id=root)])

    assert await store.tree("run_unknown") == []


async def test_an_unknown_parent_is_refused_and_nothing_is_stored(store):
    """All or none: also the run before the wrong one is not accepted."""
    with pytest.raises(RunNotFoundError) as caught:
        await store.accept([NewRun(task="a"), NewRun(task="a", parent_id="run_nope")])

    assert caught.value.run_id == "run_nope"
    assert caught.value.exit_code == ExitCode.FAILED
    assert await store.unfinished() == 0


async def test_a_request_that_cannot_be_stored_fails_alone(store):
    """A neighbour of the same commit is accepted; of the bad batch itself nothing stays."""
    bad = store.accept([NewRun(task="a"), NewRun(task="\ud800")])
    good = store.accept([NewRun(task="b")])

    with pytest.raises(UnicodeEncodeError):
        await bad
    (answer,) = await good

    assert await store.unfinished() == 1
    assert (await reload(store, answer.id)).task == "b"


async def test_a_key_names_one_run(store):
    """The second request with a key gets the first one's run, which is not changed."""
    (first,) = await store.accept([NewRun(task="a", payload=b"1", idempotency_key="k")])
    (second,) = await store.accept([NewRun(task="a", payload=b"2", idempotency_key="k")])

    assert (first.created, second.created) == (True, False)
    assert first.id == second.id
    assert (await reload(store, first.id)).payload == b"1"
    assert await store.unfinished() == 1


async def test_a_key_names_one_run_within_a_batch(store):
    """Two requests of one batch are not different from two batches."""
    request = NewRun(task="a", idempotency_key="k")

    first, second = await store.accept([request, request])

    assert (first.created, second.created) == (True, False)
    assert first.id == second.id


async def test_a_key_belongs_to_its_task(store):
    """The same key of another task, or no key at all, is another run."""
    answers = await store.accept(
        [
            NewRun(task="a", idempotency_key="k"),
            NewRun(task="b", idempotency_key="k"),
            NewRun(task="a"),
            NewRun(task="a"),
        ]
    )

    assert all(each.created for each in answers)
    assert len({each.id for each in answers}) == 4


async def test_a_key_names_a_finished_run_too(store):
    """A parent that starts over finds the child that has finished meanwhile."""
    (child,) = await store.accept([NewRun(task="a", idempotency_key="run_p:1")])
    (run,) = await claim(store)
    await store.requeue(run.id, run.attempt, "w1", excused=True)

    (again,) = await store.accept([NewRun(task="a", idempotency_key="run_p:1")])

    assert (child.id, False) == (again.id, again.created)


async def test_a_delayed_run_waits_for_its_time(store, clock):
    """Accepted for later: not handed out before, and it is said when to come back."""
    later = clock.now + 60
    (answer,) = await store.accept([NewRun(task="a", run_at=later)])

    assert (await reload(store, answer.id)).status is Status.DELAYED
    assert await claim(store, now=clock.now) == []
    assert await store.next_due_at() == later
    (run,) = await claim(store, now=later)
    assert (answer.id, Status.EXECUTING) == (run.id, run.status)


async def test_a_time_that_has_passed_is_now(store, clock):
    """A `run_at` in the past delays nothing, and puts the run before those accepted since."""
    (now,) = await accept(store, "a")
    (past,) = await store.accept([NewRun(task="a", run_at=clock.now - 5)])

    assert (await reload(store, past.id)).status is Status.QUEUED
    assert [past.id, now] == [run.id for run in await claim(store)]


async def test_reads_leave_unknown_runs_out(store):
    """An id that is not there is None, or missing in the list; the order is the asker's."""
    first, second = await accept(store, "a", "b")

    assert await store.get("run_nope") is None
    found = await store.get_many([second, "run_nope", first])
    assert [second, first] == [run.id for run in found]


async def test_counts_name_every_status(store):
    """A status without runs is counted as zero; the sum is all there is."""
    await claimed(store)
    await accept(store, "b", "b")
    await store.accept([NewRun(task="b", run_at=FAR)])

    counts = await store.counts()

    assert set(counts) == set(Status)
    assert {status: count for status, count in counts.items() if count} == {
        Status.EXECUTING: 1,
        Status.QUEUED: 2,
        Status.DELAYED: 1,
    }
    assert await store.unfinished() == 4


async def test_counts_are_told_by_task(store):
    """Each task's runs are counted by status, those that have ended as well; no zeros."""
    run = await claimed(store)
    await accept(store, "b", "b", "a")
    await store.accept([NewRun(task="b", run_at=FAR)])
    await store.finish(run.id, run.attempt, "w1", Completed())

    assert await store.counts_by_task() == {
        "a": {Status.COMPLETED: 1, Status.QUEUED: 1},
        "b": {Status.QUEUED: 2, Status.DELAYED: 1},
    }


async def test_every_option_comes_back(store, clock):
    """What a request says is what the record says."""
    (other,) = await accept(store, "a")
    facts: dict[str, Any] = {
        "task": "a",
        "queue": "q",
        "priority": 2.5,
        "concurrency_key": "user-1",
        "tags": ("x", "ü"),
        "max_attempts": 7,
        "max_duration": 1.5,
        "metadata": b'{"a":1}',
        "replay_of": other,
        "stream_run_id": "run_theirs",
        "triggered_by": "ann",
        "idempotency_key": "k",
    }
    (answer,) = await store.accept([NewRun(**facts, ttl=60)])

    run = await reload(store, answer.id)

    assert {name: getattr(run, name) for name in facts} == facts
    assert run.expires_at == clock.now + 60


async def test_metadata_can_be_changed(store):
    """Replaced as a whole, in any status; set where there was none; not for an unknown run."""
    run = await claimed(store)

    assert await store.set_metadata(run.id, b'{"n":1}')
    assert await store.set_metadata(run.id, b'{"n":2}')
    assert not await store.set_metadata("run_nope", b"{}")

    assert (await reload(store, run)).metadata == b'{"n":2}'


async def test_a_key_holds_for_its_time(store, clock):
    """Within its TTL the same run answers, later a new one; keys of other tasks are others."""
    first, again, other = await store.accept(
        [
            NewRun(task="a", idempotency_key="k", idempotency_ttl=10),
            NewRun(task="a", idempotency_key="k"),
            NewRun(task="b", idempotency_key="k"),
        ]
    )
    assert (again.id, again.created, other.created) == (first.id, False, True)
    clock.now += 9.9
    (again,) = await store.accept([NewRun(task="a", idempotency_key="k")])
    assert again.id == first.id
    clock.now += 0.2
    anew, again = await store.accept([NewRun(task="a", idempotency_key="k")] * 2)
    assert (anew.created, again.created, again.id) == (True, False, anew.id)
    clock.now += IDEMPOTENCY_TTL - 1
    (again,) = await store.accept([NewRun(task="a", idempotency_key="k")])
    assert again.id == anew.id
