"""Streams against the real gateway process, with the real credential cache."""

from __future__ import annotations

import contextvars
import threading

import pytest

from td_sharedcache import Slot
from td_worker import streams
from td_worker.context import executing
from td_worker.errors import StreamReadError, StreamWriteError
from td_worker.streams import blocking
from td_worker.streams.parts import Part
from tests.integration.streams.conftest import RUN, read_all, read_all_async, start_worker

PUTS = f"run/{RUN}/default"


def test_a_hot_loop_arrives_once_in_order_with_one_put(gateway, worker):
    """20,000 chunks of one writer: each once, in order, PUTs = 1 by the gateway's own count."""
    with worker.executing():
        with blocking.writer() as w:
            for n in range(20_000):
                w.write(n)
        found = read_all()

    assert found == list(range(20_000))
    assert gateway.stats()["puts"] == {PUTS: 1}
    assert w.last_event_id == "19999"


def test_workers_of_one_host_share_a_slots_credential(gateway, tmp_path):
    """Four workers write one slot at once over one credential folder: PUTs = 1, nothing lost."""
    folder = tmp_path / "credentials"

    def work(name: int) -> None:
        with start_worker(gateway, folder) as worker, worker.executing(), blocking.writer() as w:
            for n in range(500):
                w.write([name, n])

    _together(*[lambda name=name: work(name) for name in range(4)])
    with start_worker(gateway, folder) as worker, worker.executing():
        found = read_all()

    for name in range(4):
        assert [n for who, n in found if who == name] == list(range(500))
    assert len(found) == 2000
    assert gateway.stats()["puts"] == {PUTS: 1}


@pytest.mark.parametrize("kind", ["revoke-tokens", "expire-tokens"])
def test_tokens_that_end_in_full_flight_cost_one_put_and_no_record(gateway, tmp_path, kind):
    """Two workers of four writers: PUTs = 2, all chunks once, no wait rejected, one notice."""
    folder = tmp_path / "credentials"
    half = threading.Barrier(9)

    with start_worker(gateway, folder) as one, start_worker(gateway, folder) as two:

        def write(worker, name: int) -> None:
            with worker.executing(), blocking.writer() as w:
                for n in range(1000):
                    w.write([name, n])
                    if n == 500:
                        w.flush()
                        half.wait()

        writing = _start(
            *[
                lambda worker=worker, name=name: write(worker, name)
                for worker, names in ((one, range(4)), (two, range(4, 8)))
                for name in names
            ]
        )
        half.wait()
        gateway.fault(kind=kind)
        _join(writing)
        with one.executing():
            found = read_all()

        assert len(one.notices) + len(two.notices) == 1

    assert len(found) == 8000
    for name in range(8):
        assert [n for who, n in found if who == name] == list(range(1000))
    assert gateway.stats()["puts"] == {PUTS: 2}


def test_a_killed_gateway_costs_time_only(gateway, worker):
    """SIGKILL in mid-write and a start on the same port: no record lost, no further PUT."""
    with worker.executing():
        with blocking.writer() as w:
            for n in range(5000):
                w.write(n)
                if n == 2500:
                    w.flush()
                    assert gateway.stats()["puts"] == {PUTS: 1}
                    gateway.kill()
            gateway.start()
        assert w.last_event_id is not None
        found = read_all()

    assert found == list(range(5000))
    assert gateway.stats()["puts"].get(PUTS, 0) <= 1  # whether or not it counts over restarts


def test_an_answer_lost_after_storing_is_read_once(gateway, worker):
    """The gateway stores a batch and drops the connection: the copies are hidden by their ids."""
    gateway.fault(kind="drop-after", target="stream-store", count=2)
    with worker.executing():
        with blocking.writer() as w:
            for n in range(100):
                w.write(n)
        found = read_all()

    assert found == list(range(100))
    assert gateway.stats()["records"][f"{RUN}/default"] > 100


def test_control_and_trim_records_share_the_slots_credential(gateway, worker):
    """Through the gateway: chunks, a control record and a trim, in order, for one PUT."""
    with worker.executing() as execution:
        lane = execution.streams.open(Slot.run(RUN, "default"), execution.opened)
        for chunk in ("a", "b"):
            lane.offer(chunk)
        control = lane.control([("trigger-control", "turn-complete")])
        trim = lane.trim(1)
        lane.offer("c")
        assert (control.result(), trim.result()) == (2, 3)
        feed = execution.streams.read(RUN, "default", last_event_id=None, timeout_s=60)
        parts: list[Part] = []
        while not parts or parts[-1].id != "4":
            parts += feed.next().result() or []
        feed.close()

    assert [(part.id, part.control) for part in parts if part.id != "0"] == [
        ("1", None),
        ("2", "turn-complete"),
        ("4", None),
    ]
    assert gateway.stats()["puts"] == {PUTS: 1}


def test_a_busy_store_costs_time_only(gateway, worker):
    """Three answers of 503 with Retry-After are waited out."""
    gateway.fault(kind="status", status=503, target="stream-store", count=3, retry_after=0.01)
    with worker.executing():
        assert blocking.append("x") == 0

    assert gateway.stats()["puts"] == {PUTS: 1}


def test_an_unknown_run_fails_at_once(gateway, worker):
    """The gateway's own 404 becomes an error with advice, for writers and for readers."""
    with worker.executing():
        with pytest.raises(StreamWriteError, match="--stream-run"):
            blocking.append("x", target="run_unknown")
        with pytest.raises(StreamReadError) as caught:
            next(blocking.read("run_unknown"))

    assert caught.value.status == 404


def test_a_finished_run_fails_at_once(gateway, worker):
    """The gateway's own 400 for a completed run says what to do."""
    gateway.add_run("run_over", "COMPLETED")
    with worker.executing(), pytest.raises(StreamWriteError, match="That run is over"):
        blocking.append("x", target="run_over")


def test_unicode_and_large_chunks_come_back(gateway, worker):
    """Emoji, line separators, quotes, half a surrogate pair, odd keys, and 900 KB in a record."""
    chunks = [
        "日本 🎉",
        "a\u2028b\u0085c",
        '"\\' * 10,
        "\ud83d",
        None,
        {"ä": [1.5, True]},
        "x" * 900_000,
    ]
    with worker.executing():
        with blocking.writer("größe 100%") as w:
            for chunk in chunks:
                w.write(chunk)
        found = read_all("größe 100%")

    assert found == chunks


@pytest.mark.conformance("LE1")
def test_a_read_resumes_at_a_start_index(gateway, worker):
    """LE1: what follows the last event id is what was written after it."""
    with worker.executing():
        with blocking.writer() as w:
            for n in range(10):
                w.write(n)
        assert blocking.append("next") == 10
        assert read_all(start_index=int(w.last_event_id or -1) + 1) == ["next"]
        reading = blocking.read(RUN, start_index=8, timeout=60)
        assert [next(reading) for _ in range(3)] == [8, 9, "next"]
        reading.close()


def test_a_reader_survives_a_restart_of_the_gateway(gateway, worker):
    """A subscription reconnects to the restarted gateway and misses nothing."""
    with worker.executing():
        blocking.append("before")
        reading = blocking.read(RUN, timeout=60)
        assert next(reading) == "before"
        gateway.kill()
        gateway.start()
        blocking.append("after")
        assert next(reading) == "after"
        reading.close()


async def test_async_tasks_write_and_read_alike(gateway, worker):
    """The async half against the same gateway: writer, pipe, append, read."""
    with worker.executing() as execution:
        pass
    with executing(execution):
        async with streams.writer() as w:
            for n in range(2000):
                await w.write(n)
        assert await streams.pipe([2000, 2001]).wait() == "2001"
        assert await streams.append(2002) == 2002
        found = await read_all_async()

    assert found == list(range(2003))


def _together(*calls) -> None:
    _join(_start(*calls))


def _start(*calls) -> list[tuple[threading.Thread, list[BaseException]]]:
    return [_start_one(call) for call in calls]


def _start_one(call) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            contextvars.copy_context().run(call)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def _join(started: list[tuple[threading.Thread, list[BaseException]]]) -> None:
    for thread, _ in started:
        thread.join()
    for _, raised in started:
        assert raised == []
