"""The official npm SDK reads what Python wrote, and Python reads what the SDK sent."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from td_worker import streams
from td_worker.errors import StreamKeyError
from tests.gateway_process import GatewayProcess, start_gateway
from tests.interop.node import HERE, Node
from tests.interop.python_side import PythonTask, python_task
from tests.interop.sdk import Sdk, SdkError

pytestmark = pytest.mark.interop

CHUNKS: list[Any] = [
    {"type": "text-delta", "delta": "Grüße", "nested": {"list": [1, 2.5, None, True]}},
    "a plain string",
    "",
    "emoji \U0001f389 \U0001f469\u200d\U0001f680, combining e\u0301, U+2028 \u2028, NUL \u0000",
    '{"looks": "like JSON"}',
    [],
    0,
    False,
    None,
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Yield a real gateway process, which all tests here share."""
    with start_gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def run_ids() -> Iterator[str]:
    """Count run ids up, for tests that share a gateway and no run."""
    return (f"run_interop{number}" for number in count(1))


@pytest.fixture
def task(gateway: GatewayProcess, run_ids: Iterator[str], data_dir: Path) -> Iterator[PythonTask]:
    """Yield a Python task of a run of its own that the gateway knows."""
    with python_task(gateway, next(run_ids), data_dir / "credentials") as task:
        yield task


@pytest.fixture(scope="module")
def sdk(node: Node, gateway: GatewayProcess) -> Sdk:
    """Return the SDK pointed at the gateway."""
    return Sdk(node=node, url=gateway.url, secret_key=gateway.secret_key)


async def test_the_sdk_reads_what_a_task_wrote(task: PythonTask, sdk: Sdk) -> None:
    """Objects, strings, unicode and the empty values of JSON arrive as they were written."""
    await task.write("out", CHUNKS)

    assert sdk.read(task.run_id, "out", timeoutInSeconds=1) == CHUNKS


async def test_the_sdk_reads_each_chunk_once_and_in_order(task: PythonTask, sdk: Sdk) -> None:
    """3,000 chunks, more than the stream store takes in one append, come out as they went in."""
    chunks = [{"n": n} for n in range(3000)]
    await task.write("out", chunks)

    assert sdk.read(task.run_id, "out", timeoutInSeconds=1) == chunks


async def test_the_sdk_reads_large_chunks(task: PythonTask, sdk: Sdk) -> None:
    """Chunks of 900 KB are read whole, also when each character takes several bytes."""
    large = ["x" * 900_000, "\u00fc" * 450_000, "\U0001f389" * 225_000, '"' * 450_000]
    await task.write("out", [*large, "after"])

    assert sdk.read(task.run_id, "out", limit=5) == [*large, "after"]


@pytest.mark.parametrize("start", [0, 1, 60, 99])
async def test_the_sdk_resumes_at_a_start_index(task: PythonTask, sdk: Sdk, start: int) -> None:
    """`startIndex` n gives the stream from chunk n on."""
    await task.write("out", range(100))

    assert sdk.read(task.run_id, "out", startIndex=start, limit=100 - start) == list(
        range(start, 100)
    )


async def test_the_sdk_takes_up_where_it_stopped(task: PythonTask, sdk: Sdk) -> None:
    """What a first reader read and what a second one reads from there on is the whole stream."""
    await task.write("out", range(50))
    first = sdk.read(task.run_id, "out", limit=20)
    await task.write("out", range(50, 70))

    second = sdk.read(task.run_id, "out", startIndex=len(first), limit=50)

    assert first + second == list(range(70))


async def test_the_sdk_follows_a_stream_that_is_being_written(task: PythonTask, sdk: Sdk) -> None:
    """A reader that was there first gets the chunks as they come."""
    reading = asyncio.create_task(asyncio.to_thread(sdk.read, task.run_id, "out", limit=30))
    for part in range(3):
        await task.write("out", range(part * 10, part * 10 + 10))

    assert await reading == list(range(30))


async def test_both_readers_go_on_after_the_gateway_died(
    task: PythonTask, sdk: Sdk, gateway: GatewayProcess
) -> None:
    """The SDK and Python are cut off in mid-stream, and each reads the whole stream once."""
    await task.write("out", range(20))
    with sdk.follow(task.run_id, "out", limit=40) as of_sdk, task.at_work():
        async with aclosing(streams.read(task.run_id, "out")) as of_python:
            read_by_sdk = await asyncio.to_thread(lambda: list(islice(of_sdk, 20)))
            read_by_python = [await anext(of_python) for _ in range(20)]

            gateway.kill()
            gateway.start()
            await task.write("out", range(20, 40))

            read_by_python += [await anext(of_python) for _ in range(20)]
            read_by_sdk += await asyncio.to_thread(lambda: list(islice(of_sdk, 20)))

    assert read_by_sdk == read_by_python == list(range(40))


async def test_python_reads_what_the_sdk_appended(task: PythonTask, sdk: Sdk) -> None:
    """`streams.append` sends text, and a task reads that very text, JSON or not."""
    parts = ["plain", "emoji \U0001f389", '{"a": 1}', ""]
    sdk.append(task.run_id, "in", *parts)

    assert await task.read("in", len(parts)) == parts


async def test_python_reads_what_the_sdk_piped(task: PythonTask, sdk: Sdk) -> None:
    """Objects, strings, unicode and chunks of 900 KB of `streams.pipe` are read as they were."""
    values = [*CHUNKS, "x" * 900_000, {"text": "\U0001f389" * 225_000}, "after"]
    sdk.pipe(task.run_id, "piped", values)

    assert await task.read("piped", len(values)) == values


async def test_python_resumes_at_a_start_index(task: PythonTask, sdk: Sdk) -> None:
    """What the SDK read first, and what Python reads from there on, is the whole stream."""
    sdk.pipe(task.run_id, "piped", [{"n": n} for n in range(50)])
    first = sdk.read(task.run_id, "piped", limit=20)

    assert first + await task.read("piped", 30, start_index=20) == [{"n": n} for n in range(50)]


async def test_empty_streams(task: PythonTask, sdk: Sdk) -> None:
    """A stream without a chunk is read as one by both, whoever opened it, and ends."""
    await task.write("of python", [])
    sdk.pipe(task.run_id, "of node", [])

    for key in ("of python", "of node"):
        assert sdk.read(task.run_id, key, timeoutInSeconds=1) == []
        assert await task.read(key, 1, timeout=1) == []


async def test_a_running_task_hears_what_the_sdk_appends(task: PythonTask, sdk: Sdk) -> None:
    """A task that waits on a stream of its run is given what the SDK sends meanwhile."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(task.read("in", 4))
        await asyncio.to_thread(sdk.append, task.run_id, "in", "one", "two")
        await asyncio.to_thread(sdk.append, task.run_id, "in", "three", "four")

    assert reading.result() == ["one", "two", "three", "four"]


async def test_both_sides_write_to_one_stream(task: PythonTask, sdk: Sdk) -> None:
    """Chunks of a task and of the SDK lie in one stream, which both read alike."""
    await task.write("both", [{"from": "python"}])
    sdk.append(task.run_id, "both", "from node")
    await task.write("both", [{"from": "python again"}])

    expected = [{"from": "python"}, "from node", {"from": "python again"}]
    assert sdk.read(task.run_id, "both", limit=3) == expected
    assert await task.read("both", 3) == expected


@pytest.mark.parametrize("key", ["gr\u00f6\u00dfe 1", "\u6771\u4eac \U0001f389", "a+b~c"])
async def test_keys_mean_the_same_stream_on_both_sides(
    task: PythonTask, sdk: Sdk, key: str
) -> None:
    """A key with characters that a URL must escape names one stream for both."""
    await task.write(key, ["python"])
    sdk.append(task.run_id, key, "node")

    assert sdk.read(task.run_id, key, limit=2) == ["python", "node"]
    assert await task.read(key, 2) == ["python", "node"]


async def test_a_key_with_a_slash_is_refused(task: PythonTask, sdk: Sdk) -> None:
    """Python refuses a key that the SDK would take for two segments; the gateway refuses those."""
    with pytest.raises(StreamKeyError, match="slash"):
        await task.write("a/b", ["python"])
    with pytest.raises(SdkError, match="404"):
        sdk.append(task.run_id, "a/b", "node")


def test_the_sdk_is_told_of_an_unknown_run(gateway: GatewayProcess, sdk: Sdk) -> None:
    """The SDK gives up at once on a run that the gateway does not know, and says so."""
    with pytest.raises(SdkError, match="404"):
        sdk.read("run_unknown", "out")


def test_the_sdk_is_told_of_a_wrong_key(gateway: GatewayProcess, node: Node) -> None:
    """The SDK gives up at once on a key that the gateway refuses."""
    gateway.add_run("run_known")
    stranger = Sdk(node=node, url=gateway.url, secret_key="tr_dev_stranger")

    with pytest.raises(SdkError, match="401"):
        stranger.read("run_known", "out")


def test_the_sdk_cannot_append_to_a_finished_run(gateway: GatewayProcess, sdk: Sdk) -> None:
    """The gateway's sentence about a run that is over reaches the SDK's caller."""
    gateway.add_run("run_over", "COMPLETED")

    with pytest.raises(SdkError, match="Cannot append to a realtime stream on a completed run"):
        sdk.append("run_over", "in", "too late")


def test_the_sdk_cannot_append_what_is_too_large(gateway: GatewayProcess, sdk: Sdk) -> None:
    """A part of more than 512 KiB is refused with 413, as upstream does, and nothing is stored."""
    gateway.add_run("run_full")

    with pytest.raises(SdkError, match="413"):
        sdk.append("run_full", "in", "x" * (512 * 1024 + 1))
    assert "run_full/in" not in gateway.stats()["records"]


def test_these_scripts_reach_this_machine_only(node: Node) -> None:
    """A script of this folder that turns to another host is stopped before it connects."""
    script = "await fetch('http://192.0.2.1/').catch((e) => console.log(e.cause.message))"
    command = [node.executable, "--import", "./only_loopback.mjs", "--input-type=module"]
    done = subprocess.run(
        [*command, "--eval", script],
        cwd=HERE,
        env=node.environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "only_loopback: refused to connect to 192.0.2.1\n"
