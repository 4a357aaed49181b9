"""The official npm SDK and Python on both ends of one session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from td_worker import sessions
from td_worker.errors import SessionIdError
from tests.gateway_process import GatewayProcess, start_gateway
from tests.interop.node import Node
from tests.interop.python_side import PythonTask, python_task
from tests.interop.sdk import Sdk
from tests.interop.test_npm_sdk import CHUNKS

pytestmark = pytest.mark.interop

LARGE = ["x" * 900_000, "\u00fc" * 450_000, {"text": "\U0001f389" * 225_000}, '"' * 450_000]
NAMES = ["order-17", "gr\u00f6\u00dfe 1", "\u6771\u4eac \U0001f389", "50% & more? #1", "a+b~c"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Yield a real gateway process."""
    with start_gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def task(gateway: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonTask]:
    """Yield a Python task of a run that the gateway knows."""
    with python_task(gateway, "run_sessions", tmp_path_factory.mktemp("cache")) as task:
        yield task


@pytest.fixture
def at_work(task: PythonTask) -> Iterator[None]:
    """Be part of the task, as its code is."""
    with task.at_work():
        yield


@pytest.fixture(scope="module")
def sdk(node: Node, gateway: GatewayProcess) -> Sdk:
    """Return the SDK pointed at the gateway."""
    return Sdk(node=node, url=gateway.url, secret_key=gateway.secret_key)


async def write(out: sessions.SessionOut, values: list[Any]) -> sessions.SessionOut:
    """Write the values; they are durable on return."""
    async with out.writer() as writer:
        for value in values:
            await writer.write(value)

    return out


async def read(out: sessions.SessionOut, count: int, **options: Any) -> list[Any]:
    """Return the first values that a reader is given."""
    found: list[Any] = []
    async with aclosing(out.read(**options)) as reading:
        async for value in reading:
            found.append(value)
            if len(found) == count:
                break

    return found


@pytest.mark.usefixtures("at_work")
async def test_the_sdk_reads_what_python_wrote(sdk: Sdk) -> None:
    """Objects, strings and unicode arrive as they were written, and numbered as they were."""
    await write(sessions.open("there").out, CHUNKS)

    [found] = sdk.session("there", {"do": "read", "limit": len(CHUNKS)})

    assert found["chunks"] == CHUNKS
    assert found["ids"] == [str(n) for n in range(len(CHUNKS))]


@pytest.mark.usefixtures("at_work")
async def test_python_reads_what_the_sdk_wrote(sdk: Sdk) -> None:
    """What the SDK pipes and appends comes out as it went in, in one order."""
    sdk.session("back", {"do": "pipe", "values": CHUNKS}, {"do": "append", "values": ["end"]})

    assert await read(sessions.open("back").out, len(CHUNKS) + 1) == [*CHUNKS, "end"]


@pytest.mark.usefixtures("at_work")
async def test_large_chunks(sdk: Sdk) -> None:
    """Chunks of 900 KB are read whole by the SDK and by Python, whoever wrote them."""
    out = await write(sessions.open("large").out, LARGE)
    _, found = sdk.session(
        "large", {"do": "pipe", "values": LARGE}, {"do": "read", "limit": 2 * len(LARGE)}
    )

    assert found["chunks"] == [*LARGE, *LARGE]
    assert await read(out, 2 * len(LARGE)) == [*LARGE, *LARGE]


@pytest.mark.usefixtures("at_work")
async def test_empty_streams(sdk: Sdk) -> None:
    """A pipe without a chunk leaves a stream that both sides read as empty."""
    out = await write(sessions.open("empty").out, [])
    _, found = sdk.session(
        "empty", {"do": "pipe", "values": []}, {"do": "read", "timeoutInSeconds": 1}
    )

    assert (found["chunks"], found["ids"]) == ([], [])
    assert [value async for value in out.read(timeout=1)] == []
    assert await out.records() == []


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("name", NAMES)
async def test_ids_mean_the_same_session_on_both_sides(sdk: Sdk, name: str) -> None:
    """An external id with characters that a URL must escape names one session for both."""
    out = await write(sessions.open(name).out, ["python"])
    _, found = sdk.session(name, {"do": "append", "values": ["node"]}, {"do": "read", "limit": 2})

    assert found["chunks"] == ["python", "node"]
    assert await read(out, 2) == ["python", "node"]


def test_an_id_with_a_slash_is_refused() -> None:
    """Python refuses an id that is no single segment of an address, and says so."""
    with pytest.raises(SessionIdError, match="slash"):
        sessions.open("a/b")


@pytest.mark.usefixtures("at_work")
async def test_the_sdk_resumes_in_mid_stream(sdk: Sdk) -> None:
    """What Python says was written last is where the SDK goes on behind."""
    out = sessions.open("resumed").out
    async with out.writer() as writer:
        for n in range(20):
            await writer.write(n)
        await writer.flush()
        last = writer.last_event_id
        await writer.write("after")

    [found] = sdk.session("resumed", {"do": "read", "limit": 1, "lastEventId": last})

    assert found["chunks"] == ["after"]


@pytest.mark.usefixtures("at_work")
async def test_python_resumes_in_mid_stream(sdk: Sdk) -> None:
    """Where a reader of the SDK stopped Python goes on, and the whole stream was read once."""
    _, found = sdk.session(
        "handed over",
        {"do": "pipe", "values": [{"n": n} for n in range(50)]},
        {"do": "read", "limit": 20},
    )
    last = found["ids"][len(found["chunks"]) - 1]
    rest = await read(sessions.open("handed over").out, 30, last_event_id=last)

    assert [*found["chunks"], *rest] == [{"n": n} for n in range(50)]


@pytest.mark.usefixtures("at_work")
async def test_control_records_of_python(sdk: Sdk) -> None:
    """A control record reaches the SDK's `onControl` in its place, and is no chunk."""
    out = await write(sessions.open("controlled").out, ["before"])
    seq = await out.write_control("turn-complete", {"session-in-event-id": "7"})
    await write(out, ["after"])

    [found] = sdk.session("controlled", {"do": "read", "limit": 2})

    headers = [["trigger-control", "turn-complete"], ["session-in-event-id", "7"]]
    assert found["chunks"] == ["before", "after"]
    assert found["controls"] == [{"subtype": "turn-complete", "headers": headers, "seqNum": seq}]


@pytest.mark.usefixtures("at_work")
async def test_control_records_of_the_sdk(sdk: Sdk) -> None:
    """A control record of the SDK reaches `on_control` in its place, and is no chunk."""
    headers = [["session-in-event-id", "7"]]
    sdk.session(
        "commanded",
        {"do": "append", "values": ["before"]},
        {"do": "control", "subtype": "turn-complete", "headers": headers},
        {"do": "append", "values": ["after"]},
    )
    controls: list[sessions.Control] = []
    found = await read(sessions.open("commanded").out, 2, on_control=controls.append)

    assert found == ["before", "after"]
    assert [(one.subtype, one.seq_num) for one in controls] == [("turn-complete", 1)]
    assert controls[0].headers["session-in-event-id"] == "7"


@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("trimmer", ["python", "node"])
async def test_trims(sdk: Sdk, trimmer: str) -> None:
    """After a trim by either side both read from there on, with the numbers that there were."""
    name = f"trimmed by {trimmer}"
    out = await write(sessions.open(name).out, list(range(10)))
    if trimmer == "python":
        await out.trim_to(6)
    else:
        sdk.session(name, {"do": "trim", "to": 6})
    await write(out, ["after"])

    [found] = sdk.session(name, {"do": "read", "limit": 5})

    assert found["chunks"] == await read(out, 5) == [6, 7, 8, 9, "after"]
    assert found["ids"][0] == "6"


@pytest.mark.usefixtures("at_work")
async def test_python_hears_what_the_sdk_sends(sdk: Sdk) -> None:
    """A task that waits on `in` is given what the SDK sends, as it was sent."""
    messages = [{"kind": "message", "text": "Gr\u00fc\u00dfe"}, {"n": [1, None]}]
    session = sessions.open("listening")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(session.in_.once(timeout=60))
        await asyncio.to_thread(
            sdk.session, "listening", {"do": "send", "values": [*messages, "text"]}
        )
    rest = [(await session.in_.once(timeout=20)).unwrap() for _ in range(2)]

    assert [first.result().unwrap(), *rest] == [*messages, "text"]


@pytest.mark.usefixtures("at_work")
async def test_the_sdk_hears_what_python_sends(sdk: Sdk) -> None:
    """A task of the SDK that waits on `in` is given what Python sends."""
    session = sessions.open("heard")
    await session.in_.send({"kind": "message", "text": "Gr\u00fc\u00dfe"})
    await session.in_.send({"n": 2})

    [received] = sdk.session("heard", {"do": "receive", "count": 2})

    assert received == [{"kind": "message", "text": "Gr\u00fc\u00dfe"}, {"n": 2}]


@pytest.mark.usefixtures("at_work")
async def test_a_named_channel_is_one_channel_on_both_sides(sdk: Sdk) -> None:
    """A named channel carries both directions both ways, apart from the session's own."""
    session = sessions.open("channelled")
    logs = session.channel("logs.v1")
    await write(logs.out, ["python"])
    seq = await logs.out.write_control("mark")
    await logs.in_.send({"from": "python"})
    await write(session.out, ["beside"])

    _, found, received, _ = sdk.session(
        "channelled",
        {"do": "append", "values": ["node"]},
        {"do": "read", "limit": 2},
        {"do": "receive", "count": 1},
        {"do": "send", "values": [{"from": "node"}]},
        channel="logs.v1",
    )

    assert found["chunks"] == await read(logs.out, 2) == ["python", "node"]
    assert [control["seqNum"] for control in found["controls"]] == [seq]
    assert received == [{"from": "python"}]
    heard = [(await logs.in_.once(timeout=20)).unwrap() for _ in range(2)]
    assert heard == [{"from": "python"}, {"from": "node"}]
    assert [
        record.data for record in await session.out.records() if isinstance(record, sessions.Record)
    ] == ["beside"]


@pytest.mark.usefixtures("at_work")
async def test_the_sdk_resumes_a_named_channel(sdk: Sdk) -> None:
    """A cursor of Python's on a named channel is one of the SDK's, and trims hold there too."""
    logs = sessions.open("channelled again").channel("logs")
    await write(logs.out, list(range(10)))
    await logs.out.trim_to(4)

    first, rest = sdk.session(
        "channelled again",
        {"do": "read", "limit": 2},
        {"do": "read", "limit": 3, "lastEventId": "6"},
        channel="logs",
    )

    assert (first["chunks"], rest["chunks"]) == ([4, 5], [7, 8, 9])
