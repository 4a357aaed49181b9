"""Requests over the control socket, carried out by a real supervisor."""

import math
import os
import time
from collections.abc import Iterator

import msgspec
import pytest

from td_runtime.control import (
    Accepted,
    AddTags,
    CanceledRuns,
    CancelRuns,
    ControlClient,
    ControlRefusedError,
    Done,
    GetRun,
    ListRuns,
    ListSchedules,
    ListTasks,
    ReplayRun,
    RescheduleRun,
    RunDetails,
    RunsPage,
    RunView,
    SchedulesView,
    SetMetadata,
    Stopping,
    StopRuntime,
    TasksView,
    TriggerRuns,
    WaitForRun,
)
from td_worker.messages import TriggerItem
from tests.runtime_process import RuntimeProcess


@pytest.fixture
def client(runtime: RuntimeProcess) -> Iterator[ControlClient]:
    with ControlClient(runtime.data_dir, name="a test") as client:
        yield client


def start(client: ControlClient, **facts: object) -> str:
    item = msgspec.convert({"payload": b"1", **facts}, TriggerItem)
    return client.ask(TriggerRuns(items=[item]), Accepted).run_ids[0]


def get(client: ControlClient, run_id: str) -> RunDetails:
    return client.ask(GetRun(run_id=run_id), RunDetails)


def test_what_was_asked_for_is_recorded(runtime: RuntimeProcess, client: ControlClient) -> None:
    """A run keeps every option of its trigger, and who asked for it."""
    run_id = start(
        client,
        task="echo",
        payload=b'{"a": 1}',
        tags=("x", "y"),
        priority=2.0,
        concurrency_key="k",
        max_attempts=7,
        max_duration=60.0,
        metadata=b'{"m": 2}',
    )
    runtime.result(run_id)
    run = get(client, run_id)

    assert (run.payload, run.output, run.metadata) == ({"a": 1}, {"a": 1}, {"m": 2})
    assert (run.tags, run.priority, run.concurrency_key) == (("x", "y"), 2.0, "k")
    assert (run.max_attempts, run.max_duration, run.queue) == (7, 60.0, "task/echo")
    assert run.triggered_by == f"a test (user {os.geteuid()}, process {os.getpid()})"
    assert run.is_finished


def test_a_key_gives_the_run_that_is_there(client: ControlClient) -> None:
    """The second of two requests with one key is told that its run is not new."""
    item = TriggerItem(task="echo", idempotency_key="once")
    first, second = (client.ask(TriggerRuns(items=[item]), Accepted) for _ in range(2))

    assert first.run_ids == second.run_ids
    assert (first.created, second.created) == ([True], [False])


def test_cancel(runtime: RuntimeProcess, client: ControlClient) -> None:
    """Runs are told apart that end at once, that are told to, that are over, and that are not."""
    over = start(client, task="echo")
    runtime.result(over)
    later = start(client, task="echo", run_at=time.time() + 3600)
    busy = start(client, task="hang")
    while get(client, busy).status != "EXECUTING":
        pass
    done = client.ask(CancelRuns(run_ids=[over, later, busy, "run_no"]), CanceledRuns)

    assert done == CanceledRuns(
        canceled=[later], requested=[busy], finished=[over], unknown=["run_no"]
    )
    assert runtime.result(busy).status == "CANCELED"
    canceled_by = get(client, later).canceled_by
    assert canceled_by is not None
    assert canceled_by.startswith("a test (user ")


def test_replay(runtime: RuntimeProcess, client: ControlClient) -> None:
    """A replay is a new run with payload, tags and queue of the old one, or another payload."""
    old = start(client, task="echo", payload=b"[1]", tags=("t",), idempotency_key="old")
    same = client.ask(ReplayRun(run_id=old), Accepted).run_ids[0]
    other = client.ask(ReplayRun(run_id=old, payload=b"[2]"), Accepted).run_ids[0]

    assert len({old, same, other}) == 3
    assert (runtime.output(same), runtime.output(other)) == ([1], [2])
    run = get(client, same)
    assert (run.replay_of, run.tags, run.idempotency_key) == (old, ("t",), None)


def test_pages(client: ControlClient) -> None:
    """Pages of a list follow each other without a gap, in both directions."""
    ids = [start(client, task="echo", tags=("paged",)) for _ in range(5)][::-1]

    def page(**facts: object) -> list[str]:
        request = msgspec.convert({"tag": "paged", "limit": 2, **facts}, ListRuns)
        return [run.id for run in client.ask(request, RunsPage).runs]

    assert page() == ids[:2]
    assert page(before=ids[1]) == ids[2:4]
    assert page(before=ids[3]) == ids[4:]
    assert page(after=ids[2]) == ids[:2]
    assert page(tasks={"fail"}) == []


def test_metadata(client: ControlClient) -> None:
    """Metadata is replaced while the run is there, and refused when it is no JSON."""
    run_id = start(client, task="echo", run_at=time.time() + 3600)
    client.ask(SetMetadata(run_id=run_id, metadata=b'{"n": 3}'), Done)

    assert get(client, run_id).metadata == {"n": 3}
    with pytest.raises(ControlRefusedError, match=f"metadata for run '{run_id}' is not JSON"):
        client.ask(SetMetadata(run_id=run_id, metadata=b"{"), Done)


def test_a_delayed_run_is_moved(client: ControlClient) -> None:
    """To another time, or to now; nothing else can be moved, and not beyond all time."""
    run_id = start(client, task="hello", run_at=time.time() + 3600)
    client.ask(RescheduleRun(run_id=run_id, run_at=(later := time.time() + 7200)), Done)
    moved = get(client, run_id)

    assert (moved.status, moved.run_at) == ("DELAYED", later)
    with pytest.raises(ControlRefusedError, match=f"the delay of run '{run_id}' ends at inf"):
        client.ask(RescheduleRun(run_id=run_id, run_at=math.inf), Done)
    client.ask(RescheduleRun(run_id=run_id, run_at=0.0), Done)
    client.ask(WaitForRun(run_id=run_id), RunView)
    with pytest.raises(ControlRefusedError, match="is not DELAYED"):
        client.ask(RescheduleRun(run_id=run_id, run_at=later), Done)


def test_tags_are_added(client: ControlClient) -> None:
    """Up to the limit, which counts those that the run has."""
    run_id = start(client, task="echo", tags=("t1",), run_at=time.time() + 3600)
    client.ask(AddTags(run_id=run_id, tags=("t2", "t1")), Done)

    assert get(client, run_id).tags == ("t1", "t2")
    with pytest.raises(ControlRefusedError, match=f"11 tags for run '{run_id}'; limits.tags = 10"):
        client.ask(AddTags(run_id=run_id, tags=tuple("abcdefghi")), Done)


def test_tasks_and_schedules(client: ControlClient) -> None:
    """Tasks are listed with what their config says, schedules with their next ticks."""
    tasks = {task.id: task for task in client.ask(ListTasks(), TasksView).tasks}
    (schedule,) = client.ask(ListSchedules(upcoming=3), SchedulesView).schedules

    assert list(tasks) == ["echo", "hello", "fail", "hang", "typed", "nightly"]
    assert (tasks["fail"].max_attempts, tasks["echo"].queue) == (1, "task/echo")
    assert (schedule.task, schedule.cron, schedule.timezone) == (
        "nightly",
        "0 3 * * *",
        "Europe/Berlin",
    )
    assert len(schedule.upcoming) == 3
    assert schedule.upcoming[0] > time.time()


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (
            TriggerRuns(items=[TriggerItem(task="ech")]),
            "unknown_task",
            (
                "there is no task 'ech'; did you mean 'echo'? "
                "(registered: echo, hello, fail, hang, typed, nightly)"
            ),
        ),
        (
            TriggerRuns(items=[TriggerItem(task="echo")] * 501),
            "too_large",
            "a batch of 501 runs; limits.batch = 500",
        ),
        (GetRun(run_id="run_no"), "unknown_run", "there is no run 'run_no'"),
        (ReplayRun(run_id="run_no"), "unknown_run", "there is no run 'run_no'"),
        (SetMetadata(run_id="run_no", metadata=b"{}"), "unknown_run", "there is no run 'run_no'"),
        (AddTags(run_id="run_no", tags=("t",)), "unknown_run", "there is no run 'run_no'"),
        (RescheduleRun(run_id="run_no", run_at=0.0), "unknown_run", "there is no run 'run_no'"),
        (ListRuns(limit=0), "invalid", "limit = 0; it must be from 1 to 1000"),
        (
            ListRuns(statuses=frozenset({"DONE"})),
            "invalid",
            (
                "there is no status 'DONE'; one of QUEUED, DELAYED, EXECUTING, WAITING, RETRYING, "
                "COMPLETED, FAILED, CRASHED, TIMED_OUT, CANCELED, EXPIRED"
            ),
        ),
        (ListSchedules(upcoming=101), "invalid", "upcoming = 101; it must be from 0 to 100"),
        (
            StopRuntime(drain_timeout=-1.0),
            "invalid",
            "drain_timeout = -1; it must be from 0 to 604800 seconds",
        ),
        (
            CancelRuns(run_ids=["run_no"] * 10_001),
            "invalid",
            "10001 runs to cancel; at most 10000 at once",
        ),
    ],
)
def test_refusals(client: ControlClient, request_: msgspec.Struct, code: str, message: str) -> None:
    """What cannot be done is refused with a message for people and a code for programs."""
    with pytest.raises(ControlRefusedError) as refused:
        client.ask(request_, Done)

    assert (refused.value.code, refused.value.what) == (code, message)


def test_stop(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A request stops the runtime as SIGTERM does: it drains, and leaves with 0."""
    source = "import time\n\ndef slow(payload):\n    time.sleep(0.5)\n    return 'done'\n"
    with RuntimeProcess(tmp_path_factory.mktemp("stopped"), tasks=source, workers=1) as runtime:
        run_id = runtime.trigger("slow")
        with ControlClient(runtime.data_dir) as client:
            while client.ask(GetRun(run_id=run_id), RunDetails).status != "EXECUTING":
                pass
            assert client.ask(StopRuntime(), Stopping).pid == runtime.process.pid
            with pytest.raises(ControlRefusedError) as refused:
                client.ask(TriggerRuns(items=[TriggerItem(task="slow")]), Accepted)
            assert refused.value.code == "draining"
        assert runtime.wait_for_exit() == 0

    assert any(e["event"] == "run.completed" for e in runtime.events)
