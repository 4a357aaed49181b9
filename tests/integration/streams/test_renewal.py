"""Refused credentials, busy stores and broken connections: what writers notice, and what not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from td_sharedcache import Credential, Slot
from td_sharedcache.errors import MintError
from td_sharedcache.testing import InMemoryCredentialCache, ScriptedMinter
from td_worker import streams
from td_worker.context import executing
from td_worker.control_plane import ControlPlane
from td_worker.errors import (
    ControlPlaneRefusedError,
    StreamStoreAuthError,
    StreamStoreBusyError,
    StreamStoreRefusedError,
    StreamVersionError,
    StreamWriteError,
)
from td_worker.stream_store import Ack, Appended
from td_worker.streams import blocking
from td_worker.streams.client import StreamClient
from td_worker.streams.lane import Lane
from td_worker.streams.policy import StreamLimits
from td_worker.testing import FakePlatform, LoopThread
from tests.integration.streams.conftest import RUN, read_all_async

SLOT = Slot.run(RUN, "default")
QUICK = StreamLimits(retry_budget=0.2, retry_base=0.01)
PATIENT = StreamLimits(retry_budget=60.0, retry_base=0.001, retry_cap=0.01)


def chunks_of(platform: FakePlatform, writer: int) -> list[int]:
    return [n for who, n in platform.chunks(RUN) if who == writer]


async def test_tokens_revoked_in_full_flight_cost_one_put_and_no_record(platform, execution):
    """Eight writers never notice: one more PUT, every chunk once, each order kept."""
    half = asyncio.Barrier(9)

    async def write(name: int) -> None:
        async with streams.writer() as w:
            for n in range(1000):
                await w.write([name, n])
                if n == 500:
                    await w.flush()
                    await half.wait()

    with executing(execution), capture_logs() as logs:
        writing = [asyncio.create_task(write(name)) for name in range(8)]
        await half.wait()
        platform.revoke_tokens()
        await asyncio.gather(*writing)

    assert platform.puts == {(RUN, "default"): 2}
    assert [chunks_of(platform, name) for name in range(8)] == [list(range(1000))] * 8
    assert len(platform.records(RUN)) == 8000
    assert [line["event"] for line in logs].count("stream.credential_renewed") == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_one_refusal_is_renewed_silently(platform, execution, status):
    """401 and 403 alike: evict, mint, send the same records again."""
    platform.spoil("append", status=status)
    with executing(execution):
        assert await streams.append("x") == 0

    assert platform.puts == {(RUN, "default"): 2}


async def test_a_fresh_credential_that_is_refused_too_fails_the_writers(platform, execution):
    """No resend loop: the error names slot, counts and cause, and later writers start afresh."""
    with executing(execution):
        w = streams.writer()
        await w.write("acked")
        await w.flush()
        platform.spoil("append", status=401, times=2)
        await w.write("lost 1")
        await w.write("lost 2")
        with pytest.raises(StreamWriteError) as caught:
            await w.wait()
        assert platform.puts == {(RUN, "default"): 2}
        await streams.append("recovered")

    error = caught.value
    assert (error.slot, error.acked, error.unacked) == ("run/run_1/default", 1, 2)
    assert isinstance(error.__cause__, StreamStoreAuthError)
    assert platform.puts == {(RUN, "default"): 3}
    assert platform.chunks(RUN) == ["acked", "recovered"]
    assert execution.opened.records_lost == 2


async def test_every_writer_with_unacked_records_hears_of_a_failure(platform, execution):
    """Writers with everything acked go on; those that lost records fail, each with its counts."""
    with executing(execution):
        done, one, two = streams.writer(), streams.writer(), streams.writer()
        await done.write("done")
        await done.flush()
        platform.spoil("append", status=400)
        with platform.holding_appends():
            await one.write("lost")
            await two.write("lost")
            await two.write("lost")
        errors = await asyncio.gather(one.flush(), two.wait(), return_exceptions=True)
        await done.write("still there")
        assert await done.wait() is not None

    assert [type(error) for error in errors] == [StreamWriteError, StreamWriteError]
    assert [error.unacked for error in errors if isinstance(error, StreamWriteError)] == [1, 2]
    assert platform.chunks(RUN) == ["done", "still there"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_busy_store_is_tried_again(platform, status):
    """The writer waits a little longer and notices nothing else; the credential is kept."""
    platform.spoil("append", status=status, times=3)
    with platform.execution(run_id=RUN, limits=PATIENT):
        assert await streams.append("x") == 0

    assert platform.puts == {(RUN, "default"): 1}


@pytest.mark.parametrize("headers", [{"retry-after-ms": "30"}, {"Retry-After": "0.03"}])
async def test_the_stores_wish_to_wait_is_obeyed(platform, headers):
    """retry-after-ms and Retry-After are the least delay before the next try."""
    platform.spoil("append", status=503, headers=headers)
    with platform.execution(run_id=RUN, limits=PATIENT), capture_logs() as logs:
        await streams.append("x")

    retried = [line for line in logs if line["event"] == "stream.append_retried"]
    assert [line["delay_s"] for line in retried] == [0.03]


async def test_connections_that_break_before_or_after_storing_hide_their_duplicates(platform):
    """A lost answer stores a batch twice under the same ids, which readers see once, in order."""
    platform.spoil("append", stored=False, times=2)
    platform.spoil("append", stored=True, times=2)
    with platform.execution(run_id=RUN, limits=PATIENT):
        async with streams.writer() as w:
            for n in range(1500):
                await w.write(n)
        found = await read_all_async()

    assert len(platform.records(RUN)) > 1501
    assert found == platform.chunks(RUN)[:-1] == list(range(1500))


async def test_a_spent_budget_fails_the_writers_and_evicts_the_slot(platform):
    """The cause is the last trouble; after it the appender serves later writers."""
    platform.spoil("append", status=503, times=100_000, text="draining")
    with platform.execution(run_id=RUN, limits=QUICK) as execution:
        with pytest.raises(StreamWriteError, match="draining") as caught:
            await streams.append("lost")
        platform.heal()
        assert await streams.append("kept") == 0

    assert isinstance(caught.value.__cause__, StreamStoreBusyError)
    assert platform.puts == {(RUN, "default"): 2}
    assert execution.opened.records_lost == 1


async def test_a_refusal_for_good_is_not_retried(platform, execution):
    """A 422 fails at once: the same bytes would be refused again."""
    platform.spoil("append", status=422, text='{"code":"invalid","message":"no"}')
    with executing(execution), pytest.raises(StreamWriteError, match="422 invalid: no") as caught:
        await streams.append("x")

    assert isinstance(caught.value.__cause__, StreamStoreRefusedError)


async def test_an_unknown_run_fails_at_once_and_says_what_to_do(platform, execution):
    """A 404 of the control plane is final: no retry, no PUT counted, advice in the text."""
    platform.unknown.add("run_x")
    with executing(execution), pytest.raises(StreamWriteError, match="--stream-run") as caught:
        await streams.append("x", target="run_x")

    assert isinstance(caught.value.__cause__, ControlPlaneRefusedError)
    assert "does not know this run" in caught.value.reason
    assert platform.puts == {}


async def test_a_finished_run_fails_at_once_and_says_what_to_do(platform, execution):
    """A 400 for a completed run is final and names the remedy."""
    platform.finished.add(RUN)
    with executing(execution), pytest.raises(StreamWriteError, match="That run is over"):
        await streams.append("x")


async def test_a_v1_stream_is_refused_by_name(platform, execution):
    """A control plane without S2 for the run is told apart from everything else."""
    platform.stream_version = "v1"
    with executing(execution), pytest.raises(StreamWriteError, match="version v1") as caught:
        await streams.append("x")

    assert isinstance(caught.value.__cause__, StreamVersionError)


async def test_a_mint_that_fails_for_now_is_waited_out(platform):
    """Retryable mint errors and the cache's back-off cost time, not records."""
    busy = MintError("busy", retryable=True, status=503)
    minter = ScriptedMinter([busy, busy])
    cache = InMemoryCredentialCache(minter)
    limits = StreamLimits(retry_budget=1.0, retry_base=0.001)
    with platform.client(limits=limits, cache=cache) as client:
        lane = client.open(SLOT)
        lane.offer("x")
        with contextlib.suppress(StreamWriteError):  # the scripted grant's store is nowhere
            await asyncio.wrap_future(lane.flush())

    assert len(minter.slots) == 3


def test_a_bug_below_fails_the_writers_and_is_logged_whole(platform):
    """Whatever is raised unforeseen, writers hear of it, and the log has its trace."""

    class BrokenCache(InMemoryCredentialCache):
        def peek(self, slot: Slot) -> Credential | None:
            raise ZeroDivisionError("a bug")

    cache = BrokenCache(ScriptedMinter())
    with platform.client(cache=cache) as client, capture_logs() as logs:
        lane = client.open(SLOT)
        lane.offer("x")
        with pytest.raises(StreamWriteError, match="ZeroDivisionError: a bug"):
            lane.flush().result()

    failed = [line for line in logs if line["event"] == "stream.write_failed"]
    assert isinstance(failed[0]["exc_info"], ZeroDivisionError)


def test_an_appender_survives_a_store_that_lies(platform):
    """An ack that does not fit the batch fails its writers; the next writer is served."""

    class Liar:
        def __init__(self) -> None:
            self.ends = [1, 2]

        async def append(self, credential: Credential, records: Sequence[Appended]) -> Ack:
            end = self.ends.pop(0)
            return Ack(start=0, end=end, tail=end)

    with LoopThread() as thread:
        cache = InMemoryCredentialCache(ScriptedMinter())
        plane = ControlPlane(platform.url, platform.secret_key)
        client = StreamClient(thread.loop, cache=cache, store=Liar(), control_plane=plane)
        lane = client.open(SLOT)
        _write_two(client, lane)
        with pytest.raises(StreamWriteError, match="ValueError"):
            lane.flush().result(timeout=10)
        other = client.open(SLOT)
        _write_two(client, other)
        other.flush().result(timeout=10)

    assert (lane.acked, other.acked) == (0, 2)


def _write_two(client: StreamClient, lane: Lane) -> None:
    """Write two chunks of one batch: the runtime loop stands still meanwhile."""
    written = threading.Event()
    client.call(written.wait)
    lane.offer(1)
    lane.offer(2)
    written.set()


def test_threads_are_renewed_like_tasks(platform, execution):
    """The twin: a revoked token is not noticed by a plain writer."""
    with executing(execution), blocking.writer() as w:
        for n in range(3000):
            w.write(n)
            if n == 1500:
                w.flush()
                platform.revoke_tokens()

    assert platform.chunks(RUN) == list(range(3000))
    assert platform.puts == {(RUN, "default"): 2}


def test_a_closing_client_fails_what_it_cannot_send(platform):
    """A worker that stops says so to the threads that still wait for an ack."""
    with platform.client() as client:
        lane = client.open(SLOT)
        with platform.holding_appends():
            lane.offer("x")
            waiting = lane.flush()
            platform.arrived.wait()
            closing = client.submit(client.close(timeout=0.05))
            closing.result()
        with pytest.raises(StreamWriteError, match="stopping"):
            waiting.result()

    assert lane.lost == 1
