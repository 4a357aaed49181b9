"""Nothing accepted is lost: a worker writes at full speed while something breaks.

Its streams half, with the real cache and real HTTP, writes to a real gateway process. In every case
all that was accepted is read back once, in its writer's order, and no writer sees an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from td_sharedcache import Slot
from td_worker.errors import StreamWriteError
from td_worker.streams import blocking
from td_worker.streams.policy import StreamLimits
from tests.gateway_process import GatewayProcess
from tests.integration.streams.conftest import RUN, Worker, read_all, start_worker

PUTS = f"run/{RUN}/default"
PAD = "x" * 800
"""Makes a chunk so large that 12,000 fill the buffer, which writers then wait for."""
WRITERS = 3


class Writing:
    """Threads that write as fast as the buffer lets them, until they are told to stop."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._stop = threading.Event()
        self._counts = [0] * WRITERS
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._write, args=(name,)) for name in range(WRITERS)
        ]

    def start(self) -> None:
        """Start all writers and wait until each is well under way, its first chunk acked."""
        for thread in self._threads:
            thread.start()
        self.go_on()

    def go_on(self, chunks: int = 2000) -> None:
        """Return when every writer that is well has had so many more chunks accepted."""
        targets = [count + chunks for count in self._counts]
        while any(map(int.__lt__, self._counts, targets)) and not self._errors:
            time.sleep(0.001)

    def stop(self) -> list[int]:
        """Have every writer close and wait for its acks; return how many chunks each wrote."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self._errors == []

        return self._counts

    def _write(self, name: int) -> None:
        try:
            with self._worker.executing(), blocking.writer() as w:
                while not self._stop.is_set():
                    w.write([name, self._counts[name], PAD])
                    if not self._counts[name]:
                        w.flush()
                    self._counts[name] += 1
        except BaseException as error:
            self._errors.append(error)


def expire(gateway: GatewayProcess) -> None:
    """Let every token be as good as a day old."""
    gateway.fault(kind="expire-tokens")


def revoke(gateway: GatewayProcess) -> None:
    """Take every token back."""
    gateway.fault(kind="revoke-tokens")


def restart(gateway: GatewayProcess) -> None:
    """Kill the gateway and start it again three seconds later."""
    gateway.kill()
    time.sleep(3.0)  # how long it is down
    gateway.start()


def lose_answers(gateway: GatewayProcess) -> None:
    """Store five batches and cut the connection before the answer."""
    gateway.fault(kind="drop-after", target="stream-store", count=5)


def ask_for_patience(gateway: GatewayProcess) -> None:
    """Answer three times that another try is welcome in half a second."""
    gateway.fault(kind="status", status=429, target="stream-store", count=3, retry_after=0.5)


def be_busy(gateway: GatewayProcess) -> None:
    """Answer 503 for ten seconds."""
    gateway.fault(kind="status", status=503, target="stream-store")
    time.sleep(10.0)  # how long it is busy
    gateway.clear_faults()


@pytest.mark.parametrize(
    ("trouble", "puts"),
    [
        (expire, 2),
        (revoke, 2),
        (restart, None),  # it counts from its start
        (lose_answers, 1),
        (ask_for_patience, 1),
        (be_busy, 1),
    ],
)
def test_everything_accepted_is_read_back_once(
    gateway: GatewayProcess,
    worker: Worker,
    trouble: Callable[[GatewayProcess], None],
    puts: int | None,
) -> None:
    """Three writers at full speed never notice, and each one's chunks are read back in order."""
    writing = Writing(worker)
    writing.start()
    trouble(gateway)
    writing.go_on()
    counts = writing.stop()
    with worker.executing():
        found = [(name, n) for name, n, _ in read_all()]

    assert len(found) == sum(counts)
    for name, count in enumerate(counts):
        assert [n for who, n in found if who == name] == list(range(count))
    if puts is not None:
        assert gateway.stats()["puts"] == {PUTS: puts}
    if trouble is lose_answers:
        assert gateway.stats()["records"][f"{RUN}/default"] > sum(counts) + 1


@contextmanager
def two_workers(gateway: GatewayProcess, folder: Path) -> Iterator[tuple[Worker, Worker]]:
    """Yield two workers of one host."""
    limits = StreamLimits(retry_budget=5.0)
    with (
        start_worker(gateway, folder, limits) as one,
        start_worker(gateway, folder, limits) as other,
    ):
        yield one, other


def test_a_fresh_credential_that_is_refused_too_ends_the_writer(gateway, tmp_path):
    """`wait` rejects with what was acked, the slot is evicted, others are told, the next mints."""
    with two_workers(gateway, tmp_path / "credentials") as (one, other):
        with one.executing():
            w = blocking.writer()
            for n in range(500):
                w.write(n)
            w.flush()
            gateway.fault(kind="status", status=401, target="stream-store")
            w.write("refused")
            w.write("refused, too")
            with pytest.raises(StreamWriteError) as caught:
                w.wait()

        assert (caught.value.acked, caught.value.unacked) == (500, 2)
        assert caught.value.slot == PUTS
        assert one.client.credential_id(Slot.run(RUN, "default")) is None
        assert {notice.slot for notice in one.notices} == {PUTS}
        minted = gateway.stats()["puts"][PUTS]
        gateway.clear_faults()
        with other.executing():
            assert blocking.append("by another worker") == 500
            found = read_all()

    assert found == [*range(500), "by another worker"]
    assert gateway.stats()["puts"][PUTS] == minted + 1
