"""The clients of web apps: from threads, from forked processes, over a restart, from a loop."""

import asyncio
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

import td_runtime
from td_runtime import AsyncClient, Client, ControlRefusedError, NotRunningError
from td_runtime.errors import ConfigError
from tests.docstrings import Example, find_examples, run_example
from tests.runtime_process import RuntimeProcess


@pytest.fixture
def client(runtime: RuntimeProcess) -> Iterator[Client]:
    with Client(runtime.config, name="web app") as client:
        yield client


def test_a_run_from_trigger_to_output(client: Client) -> None:
    """A run is triggered with every option, waited for, and looked at."""
    handle = client.trigger(
        "echo",
        {"a": 1},
        tags=["client"],
        ttl=timedelta(minutes=5),
        priority=1,
        metadata={"m": 1},
        max_attempts=2,
        max_duration=60,
        concurrency_key="k",
        queue="task/echo",
    )
    result = client.wait(handle.id, timeout=30)
    run = client.retrieve(handle.id)

    assert (handle.task, handle.created, result.unwrap()) == ("echo", True, {"a": 1})
    assert (run.status, run.output, run.payload, run.metadata) == (
        "COMPLETED",
        {"a": 1},
        {"a": 1},
        {"m": 1},
    )
    assert run.triggered_by is not None
    assert run.triggered_by.startswith("web app (user ")


def test_delays(client: Client) -> None:
    """A delay is seconds, a duration or a moment; what was delayed can be canceled."""
    moment = datetime.now(UTC) + timedelta(hours=1)
    handles = [client.trigger("echo", delay=delay) for delay in (3600, timedelta(hours=1), moment)]
    runs = [client.retrieve(handle.id) for handle in handles]
    done = client.cancel(*(handle.id for handle in handles), "run_no")

    assert all(abs(run.run_at - moment.timestamp()) < 60 for run in runs)
    assert (len(done.canceled), done.unknown) == (3, ["run_no"])


def test_a_value_of_a_wrong_type_is_a_type_error(client: Client, runtime: RuntimeProcess) -> None:
    """It names what is wrong; nobody is told that no supervisor answers."""
    wrong: Any = 5
    with pytest.raises(TypeError, match="run_id"):
        client.retrieve(wrong)
    with pytest.raises(TypeError, match="limit"):
        client.list(limit=cast("Any", "many"))
    with pytest.raises(TypeError, match="max_attempts"):
        client.trigger("echo", max_attempts=cast("Any", "3"))

    async def ask() -> None:
        async with AsyncClient(runtime.config) as other:
            with pytest.raises(TypeError, match="run_id"):
                await other.wait(wrong)
            with pytest.raises(TypeError, match="run_ids"):
                await other.cancel(wrong)

    asyncio.run(ask())


def test_what_is_delayed_is_moved_and_tagged(client: Client) -> None:
    """It starts at its new time, is found by its new tag, and is then too late to be moved."""
    handle = client.trigger("echo", 1, delay=3600, tags="old")
    client.add_tags(handle.id, "new", "old")
    client.reschedule(handle.id, delay=timedelta(0))

    assert client.wait(handle.id, timeout=30).unwrap() == 1
    assert [run.id for run in client.list(tag="new")] == [handle.id]
    assert client.retrieve(handle.id).tags == ("old", "new")
    with pytest.raises(ControlRefusedError, match="is not DELAYED, so it cannot be rescheduled"):
        client.reschedule(handle.id, delay=60)


def test_batches_and_lists(client: Client) -> None:
    """A batch is listed page by page, newest first; asked for again by its key it is not new."""
    options: Any = {"tags": "listed", "idempotency_key": "a batch"}
    handles = client.batch_trigger("echo", range(5), **options)
    again = client.batch_trigger("echo", range(5), **options)
    page = client.list(tag="listed", limit=3)
    rest = client.list(
        tag="listed", before=page[-1].id, task="echo", since=datetime.now(UTC) - timedelta(1)
    )

    assert [h.id for h in again] == [h.id for h in handles]
    assert not any(handle.created for handle in again)
    assert [run.id for run in [*page, *rest]] == [handle.id for handle in handles][::-1]


def test_replay(client: Client) -> None:
    """A replay has the payload of the run before, or another one, None included."""
    old = client.trigger("echo", [1])
    outputs = [
        client.wait(again.id, timeout=30).output
        for again in (client.replay(old.id), client.replay(old.id, None))
    ]

    assert outputs == [[1], None]


def test_refusals(client: Client) -> None:
    """What cannot be done is an error that says why, and the client goes on."""
    with pytest.raises(ControlRefusedError) as refused:
        client.trigger("ech")
    assert refused.value.code == "unknown_task"
    with pytest.raises(TypeError, match="trigger has no option 'dealy'; it has delay, ttl"):
        client.trigger("echo", dealy=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="list has no option 'tags'; it has status, task"):
        client.list(tags="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="a value of type object cannot be written as JSON"):
        client.trigger("echo", object())
    with pytest.raises(TimeoutError):
        client.wait(client.trigger("hang").id, timeout=0.05)

    assert client.wait(client.trigger("echo", 1).id, timeout=30).unwrap() == 1


def test_where_a_client_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a config file it says so; without a supervisor, how to start one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TD_RUNTIME_CONFIG", raising=False)
    with pytest.raises(ConfigError):
        Client()
    with pytest.raises(TypeError, match="a config file or a data folder, not both"):
        Client("a.toml", data_dir="b")
    with pytest.raises(NotRunningError, match="Start one with `td-runtime start`"):
        Client(data_dir=tmp_path).trigger("echo")


def test_threads(client: Client) -> None:
    """Threads share a client; each gets the answer to its own request."""

    def one(number: int) -> object:
        return client.wait(client.trigger("echo", number).id, timeout=30).unwrap()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(100))) == list(range(100))


def test_forks(client: Client) -> None:
    """A client that was used before a fork works in parent and children at once."""
    client.trigger("echo")
    context: Any = multiprocessing.get_context("fork")

    def ask(answers: Any, number: int) -> None:
        answers.put([client.wait(client.trigger("echo", number).id).output for _ in range(20)])

    answers = context.Queue()
    children = [context.Process(target=ask, args=(answers, n)) for n in range(3)]
    for child in children:
        child.start()
    ours = [client.wait(client.trigger("echo", "ours").id).output for _ in range(20)]
    theirs = [answers.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)

    assert ours == ["ours"] * 20
    assert sorted(theirs) == [[n] * 20 for n in range(3)]


def test_a_restart(tmp_path: Path) -> None:
    """A client finds the supervisor again that was stopped and started, or killed."""
    source = "async def echo(payload):\n    return payload\n"
    with (
        RuntimeProcess(tmp_path, tasks=source, workers=1, drain_timeout="0s") as runtime,
        Client(data_dir=runtime.data_dir.path) as client,
    ):
        first = client.trigger("echo", 1)
        client.wait(first.id)
        for end in (runtime.stop, runtime.kill):
            end()
            with pytest.raises(NotRunningError):
                client.trigger("echo", 2)
            runtime.start()
            assert client.wait(client.trigger("echo", 3).id, timeout=30).unwrap() == 3
        assert client.retrieve(first.id).output == 1


async def test_many_at_a_time_from_a_loop(runtime: RuntimeProcess) -> None:
    """The async client has as many calls under way as it is given, waits among them."""
    async with AsyncClient(runtime.config, name="loop") as client:

        async def one(number: int) -> object:
            handle = await client.trigger("echo", number)
            return (await client.wait(handle.id, timeout=30)).unwrap()

        assert await asyncio.gather(*(one(n) for n in range(50))) == list(range(50))
        handles = await client.batch_trigger("echo", [1, 2], tags="looped")
        listed = await client.list(tag="looped")
        assert [run.id for run in listed] == [handle.id for handle in handles][::-1]
        busy = await client.trigger("hang")
        with pytest.raises(TimeoutError):
            await client.wait(busy.id, timeout=0.05)
        await client.cancel(busy.id)
        later = await client.trigger("echo", 3, delay=3600)
        await client.add_tags(later.id, "moved")
        await client.reschedule(later.id, datetime.now(UTC))
        assert (await client.wait(later.id, timeout=30)).output == 3
        assert (await client.retrieve(later.id)).tags == ("moved",)
        again = await client.replay(handles[0].id)
        assert (await client.wait(again.id, timeout=30)).output == 1
        assert (await client.retrieve(again.id)).replay_of == handles[0].id


def test_an_async_client_goes_from_loop_to_loop(runtime: RuntimeProcess) -> None:
    """Each of several loops, one after the other, has connections of its own."""
    client = AsyncClient(runtime.config)

    async def one() -> str:
        async with client:
            return (await client.trigger("echo")).id

    assert len({asyncio.run(one()) for _ in range(3)}) == 3


@pytest.mark.parametrize(
    "example", find_examples(td_runtime, names=["Client", "AsyncClient"]), ids=str
)
def test_examples(runtime: RuntimeProcess, example: Example) -> None:
    """What the docstrings show runs."""
    with Client(runtime.config) as client:
        run_id = client.trigger("echo", 1).id
        known: dict[str, Any] = {"config": runtime.config, "client": client, "run_id": run_id}
        known |= {"Client": Client, "AsyncClient": AsyncClient}
        run_example(example, known)


def test_importing_the_package_is_light() -> None:
    """`import td_runtime` loads none of its modules, and making a client no event loop."""
    script = (
        "import sys, td_runtime\n"
        "before = {m for m in sys.modules if m.startswith('td_runtime.')}\n"
        "td_runtime.Client\n"
        "print(sorted(before), sorted({'asyncio', 'sqlite3', 'structlog'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert said.stdout == b"[] []\n"
