"""Many processes, one slot, one PUT: the main job under load and when a credential dies."""

from __future__ import annotations

import fcntl
from pathlib import Path

from tests.acceptance.reading import by_writer, read_stream
from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio
import fcntl
import os
from td_worker import context, streams, tasks

async def fan_out(payload):
    children = [{**payload, "writer": n} for n in range(payload["children"])]
    results = await tasks.batch_trigger_and_wait(payload["task"], children)
    return [result.unwrap() for result in results]

async def write_share(payload):
    async with streams.writer("book", target="root") as writer:
        for number in range(payload["chunks"]):
            await writer.write([payload["writer"], number])
    return os.getpid()

def _wait_for_start(path):
    with open(path) as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)

async def write_once(payload):
    await asyncio.to_thread(_wait_for_start, payload["gate"])
    await streams.append("cold", [payload["writer"], 0], target="root")
    return os.getpid()

async def write_until_told(payload):
    number = 0
    async with streams.writer("hot", target="root") as writer:
        while not os.path.exists(payload["stop"]):
            for _ in range(50):
                await writer.write([payload["writer"], number])
                number += 1
            await writer.flush()
    return number
"""


def test_many_workers_write_one_stream_with_one_put(data_dir: Path) -> None:
    """8 runs in 4 workers stream 24,000 chunks to one slot: all once, in order, with one PUT."""
    with RuntimeProcess(data_dir, tasks=TASKS, workers=4) as runtime:
        run_id = runtime.trigger("fan_out", {"task": "write_share", "children": 8, "chunks": 3000})

        pids = runtime.output(run_id)

        chunks = read_stream(runtime, run_id, "book")
        assert by_writer(chunks) == {n: list(range(3000)) for n in range(8)}
        assert runtime.stats().puts == {f"run/{run_id}/book": 1}
        assert len(set(pids)) == 4


def test_a_cold_slot_hit_by_16_processes_at_once_is_minted_once(data_dir: Path) -> None:
    """C1: 16 workers need a credential at once and the PUT takes 200 ms: one PUT, one id."""
    gate = (data_dir / "gate").open("w")
    fcntl.flock(gate, fcntl.LOCK_EX)
    with gate, RuntimeProcess(data_dir, tasks=TASKS, workers=16, level="debug") as runtime:
        runtime.fault(kind="delay", seconds=0.2, target="control-plane")
        payload = {"task": "write_once", "children": 16, "gate": gate.name}
        run_id = runtime.trigger("fan_out", payload)
        runtime.until(
            lambda _: len(runtime.find("run.started", task="write_once")) == 16, "16 runs"
        )
        fcntl.flock(gate, fcntl.LOCK_UN)

        pids = runtime.output(run_id)

        slot = f"run/{run_id}/cold"
        assert len(set(pids)) == 16
        assert runtime.stats().puts == {slot: 1}
        assert len(runtime.find("credential.minted", slot=slot)) == 1
        got = runtime.find("credential.minted", slot=slot)
        got += runtime.find("credential.shared", slot=slot)
        assert len({line["pid"] for line in got}) == 16
        assert len({line["credential_id"] for line in got}) == 1
        assert sorted(w for w, _ in read_stream(runtime, run_id, "cold")) == list(range(16))


def test_a_revoked_token_is_replaced_once_and_nothing_is_lost(data_dir: Path) -> None:
    """C4, C8: a token revoked under 8 writers in full flight costs one more PUT and no record."""
    stop = data_dir / "stop"
    with RuntimeProcess(data_dir, tasks=TASKS, workers=8) as runtime:
        payload = {"task": "write_until_told", "children": 8, "stop": str(stop)}
        run_id = runtime.trigger("fan_out", payload)
        before = runtime.stored(run_id, "hot", at_least=4000)

        runtime.fault(kind="revoke-tokens")
        runtime.stored(run_id, "hot", at_least=before + 4000)
        evicting_pid = runtime.event("credential.evicted")["pid"]
        runtime.until(
            lambda _: len({line["pid"] for line in runtime.find("notice.received")}) == 7,
            "the notice in 7 other workers",
        )
        stop.touch()
        written = runtime.output(run_id)

        slot = f"run/{run_id}/hot"
        assert runtime.stats().puts == {slot: 2}
        assert len(runtime.find("credential.evicted", slot=slot)) == 1
        assert evicting_pid not in {line["pid"] for line in runtime.find("notice.received")}
        chunks = read_stream(runtime, run_id, "hot")
        assert by_writer(chunks) == {n: list(range(count)) for n, count in enumerate(written)}
        assert all(view.records_lost == 0 for view in runtime.tree(run_id))
        assert not runtime.find("stream.write_failed")
