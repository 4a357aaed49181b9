"""What tasks may say about the runs that they trigger."""

from collections.abc import Iterator

import pytest

from td_runtime import Client
from tests.runtime_process import RuntimeProcess

TASKS = """
from datetime import timedelta

from td_worker import context, tasks
from td_worker.sync import tasks as plain

OPTIONS = dict(
    ttl=timedelta(minutes=5), priority=3, tags=["child"], concurrency_key="k", queue="task/leaf",
    max_attempts=4, max_duration=60, metadata={"m": 1}, idempotency_key_ttl=3600,
)

async def leaf(payload):
    return payload

async def parent(payload):
    one = await tasks.trigger("leaf", 1, idempotency_key="one", **OPTIONS)
    many = await tasks.batch_trigger("leaf", [2, 3], idempotency_key="many", **OPTIONS)
    waited = await tasks.trigger_and_wait("leaf", 4, **OPTIONS)
    all_ = await tasks.batch_trigger_and_wait("leaf", [5, 6], **OPTIONS)
    keyed = await tasks.trigger_and_wait("leaf", 7, idempotency_key="mine")
    later = await tasks.trigger("leaf", 8, delay=3600)
    return [r.id for r in [one, *many, waited, *all_, keyed, later]]

def plain_parent(payload):
    one = plain.trigger("leaf", 1, idempotency_key="plain one", **OPTIONS)
    many = plain.batch_trigger("leaf", [2, 3], idempotency_key="plain many", **OPTIONS)
    waited = plain.trigger_and_wait("leaf", 4, **OPTIONS)
    all_ = plain.batch_trigger_and_wait("leaf", [5, 6], **OPTIONS)
    keyed = plain.trigger_and_wait("leaf", 7, idempotency_key="plain mine")
    later = plain.trigger("leaf", 8, delay=3600)
    return [r.id for r in [one, *many, waited, *all_, keyed, later]]

async def wrong(payload):
    await tasks.trigger("leaf", dealy=1)
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("runtime")
    once = {"wrong": "retry = {max_attempts = 1}"}
    with (
        RuntimeProcess(folder, tasks=TASKS, workers=1, task_options=once) as runtime,
        Client(runtime.config) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("task", "prefix"), [("parent", ""), ("plain_parent", "plain ")], ids=["async", "plain"]
)
def test_options(client: Client, task: str, prefix: str) -> None:
    """Every option travels, in all four calls, and the default keys of waiting calls stay."""
    handle = client.trigger(task)
    ids = client.wait(handle.id, timeout=60).unwrap()
    runs = [client.retrieve(run_id) for run_id in ids]

    for run in runs[:6]:
        assert (run.priority, run.tags, run.concurrency_key) == (3.0, ("child",), "k")
        assert (run.max_attempts, run.max_duration, run.metadata) == (4, 60.0, {"m": 1})
        assert run.parent_id == handle.id
    assert [run.idempotency_key for run in runs] == [
        f"{prefix}one",
        f"{prefix}many:0",
        f"{prefix}many:1",
        f"{handle.id}:0:0",
        f"{handle.id}:1:0",
        f"{handle.id}:1:1",
        f"{prefix}mine",
        None,
    ]
    assert [run.payload for run in runs] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert runs[-1].status == "DELAYED"


def test_an_option_that_there_is_not(client: Client) -> None:
    """A slip in an option's name is an error, not an option that has no effect."""
    result = client.wait(client.trigger("wrong").id, timeout=60)

    assert result.error is not None
    assert result.error.message.startswith("trigger has no option 'dealy'; it has delay, ttl,")
