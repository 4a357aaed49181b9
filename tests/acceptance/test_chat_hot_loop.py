"""The hot loop: many processes, one session, a chunk at a time."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.chat import ChatClient
from tests.acceptance.reading import by_writer
from tests.runtime_process import RuntimeProcess

WORKERS = 8
CHUNKS = 10_000

TASKS = """
import os
import socket
import struct

from td_worker import chat, tasks


async def fan_out(payload):
    shares = [{**payload, "writer": n} for n in range(payload["writers"])]
    results = await tasks.batch_trigger_and_wait(payload["task"], shares)
    return [result.unwrap() for result in results]


async def write_chunks(payload):
    async with chat.bind(payload["chat"]):
        for number in range(payload["chunks"]):
            written = await chat.response.write([payload["writer"], number])
        await written.wait()
        sockets = _connections(payload["port"])
    return [os.getpid(), sockets]


async def throw_chunks(payload):
    async with chat.bind(payload["chat"]):
        for number in range(payload["chunks"]):
            chat.response.write([payload["writer"], number])
    return os.getpid()


async def idle(payload):
    pass


def _connections(port):
    # How many connections to the gateway have carried chunks. A mint is a PUT without a body.
    return sum(1 for sent in _bytes_sent(port) if sent > 4096)


def _bytes_sent(port):
    for fd in os.listdir("/proc/self/fd"):
        try:
            copy = socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue
        with copy:
            try:
                if copy.family == socket.AF_INET and copy.getpeername()[1] == port:
                    info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
                    yield struct.unpack_from("Q", info, 120)[0]  # tcpi_bytes_acked
            except OSError:
                continue
"""


def test_eight_workers_write_one_session_with_one_put(data_dir: Path) -> None:
    """8 workers write 10,000 chunks each to one session: all once, in order a worker, one PUT."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=WORKERS, concurrency=1) as runtime:
        with ChatClient(runtime, "idle", "hot") as client:
            runtime.output(client.run_id)
            share = {"task": "write_chunks", "chat": "hot", "chunks": CHUNKS, "writers": WORKERS}
            port = int(runtime.url.rpartition(":")[2])

            told = runtime.output(runtime.trigger("fan_out", share | {"port": port}))

            chunks = _read(client, WORKERS * CHUNKS)
        assert by_writer(chunks) == {n: list(range(CHUNKS)) for n in range(WORKERS)}
        assert len({pid for pid, _ in told}) == WORKERS
        assert runtime.stats().puts == {"session/hot/main/out": 1}
        assert [sockets for _, sockets in told] == [1] * WORKERS


def test_chunks_that_nobody_awaits_are_written_in_order(data_dir: Path) -> None:
    """A loop that awaits nothing loses nothing: its chunks are drained at the end of the run."""
    with (
        RuntimeProcess(data_dir, tasks=TASKS, workers=2) as runtime,
        ChatClient(runtime, "idle", "thrown") as client,
    ):
        runtime.output(client.run_id)
        payload = {"chat": "thrown", "chunks": CHUNKS, "writer": 0}

        runtime.output(runtime.trigger("throw_chunks", payload))

        chunks = _read(client, CHUNKS)
    assert by_writer(chunks) == {0: list(range(CHUNKS))}


def _read(client: ChatClient, count: int) -> list[list[int]]:
    """Return *count* chunks of `out`, which has no more of them."""
    records = client.records()
    chunks = [next(records).data for _ in range(count)]
    records.close()

    return chunks
