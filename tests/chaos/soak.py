"""`make soak`: many slots in turn at full speed, and whether memory and disk stay where they were.

Two processes share one cache, one of them synchronous, one on an event loop. The minter is in the
process: what is measured is the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from mmap import mmap
from pathlib import Path
from statistics import median

from td_sharedcache import CredentialCache, Grant, Policy, Slot
from td_sharedcache.testing import make_grant

SLOTS = 100_000
SAMPLE_EVERY = 1.0
EVICTED = 50
"""Every so many slots, the credential is refused and minted once more."""
HITS = 20
"""Look-ups of a slot between its first and the next one's."""
MAY_GROW = 0.05
"""Share by which the last third of a run may be above the middle third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the processes and the folder."""

    seconds: float
    slots: int
    """Slots asked for until then, by both processes."""
    rss_mib: float
    """Of the larger process."""
    files: int
    database_mib: float


class PlainMinter:
    """A minter that remembers nothing."""

    def mint(self, slot: Slot) -> Grant:
        """Make a grant."""
        return make_grant(slot)


class AsyncPlainMinter:
    """The same for an event loop."""

    async def mint(self, slot: Slot) -> Grant:
        """Make a grant."""
        return make_grant(slot)


def main() -> int:
    """Soak, and print what was seen; 0 if everything was flat."""
    seconds = _parse()
    print(f"soak: {SLOTS} slots in turn in 2 processes for {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="td-soak-") as folder:
        samples = soak(Path(folder), seconds)
    growing = list(grown(samples))
    _print(samples)
    for fault in growing:
        print(f"\nGROWS: {fault}")

    return 1 if growing else 0


def soak(folder: Path, seconds: float) -> list[Sample]:
    """Run for so long and look every second."""
    counters = mmap(-1, 16)
    samples = []
    with _processes(folder / "credentials", counters) as pids:
        began = time.monotonic()
        for number in count(1):
            time.sleep(max(0.0, began + number * SAMPLE_EVERY - time.monotonic()))
            samples.append(_look(folder, pids, counters, time.monotonic() - began))
            if samples[-1].seconds >= seconds:
                return samples

    raise AssertionError("count never ends")


def grown(samples: list[Sample]) -> Iterator[str]:
    """Tell what is higher in the last third of a run than in the middle one."""
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    for name in ("rss_mib", "files", "database_mib"):
        before = median(getattr(sample, name) for sample in middle)
        after = median(getattr(sample, name) for sample in last)
        if after > before * (1 + MAY_GROW):
            yield f"{name} was {before:.1f} and is {after:.1f}"


@contextmanager
def _processes(credentials: Path, counters: mmap) -> Iterator[list[int]]:
    bodies = (_ask_blocking, _ask_on_a_loop)
    pids = [_fork(body, credentials, counters, place) for place, body in enumerate(bodies)]
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(
    body: Callable[[Path, Callable[[int], None]], None],
    credentials: Path,
    counters: mmap,
    place: int,
) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            body(credentials, lambda asked: struct.pack_into("q", counters, 8 * place, asked))
        finally:
            os._exit(1)

    return pid


def _ask_blocking(credentials: Path, tell: Callable[[int], None]) -> None:
    cache = _open(credentials, PlainMinter())
    for number in count():
        slot = _slot(number)
        credential = cache.get_blocking(slot)
        for _ in range(HITS):
            cache.get_blocking(slot)
        if number % EVICTED == 0:
            cache.evict_blocking(slot, credential.id, reason="soak")
            cache.get_blocking(slot)
        tell(number)


def _ask_on_a_loop(credentials: Path, tell: Callable[[int], None]) -> None:
    async def ask() -> None:
        cache = _open(credentials, AsyncPlainMinter())
        # Half a turn ahead of the other process, so that both mint and both find.
        for number in count(SLOTS // 2):
            slot = _slot(number)
            credential = await cache.get(slot)
            for _ in range(HITS):
                await cache.get(slot)
            if number % EVICTED == 0:
                await cache.evict(slot, credential.id, reason="soak")
                await cache.get(slot)
            tell(number - SLOTS // 2)

    asyncio.run(ask())


def _open(credentials: Path, minter: PlainMinter | AsyncPlainMinter) -> CredentialCache:
    # Two processes that do nothing else are in each other's way; neither is to go alone for it.
    return CredentialCache(
        credentials,
        origin="http://127.0.0.1",
        api_key="tr_dev_soak",
        minter=minter,
        policy=Policy(store_wait=60.0),
    )


def _slot(number: int) -> Slot:
    return Slot.run(f"run_{number % SLOTS}", "chat")


def _look(folder: Path, pids: list[int], counters: mmap, seconds: float) -> Sample:
    files = [path for path in folder.rglob("*") if path.is_file()]
    database = sum(path.stat().st_size for path in files if path.name == "cache.db")

    return Sample(
        seconds=seconds,
        slots=sum(struct.unpack_from("qq", counters)),
        rss_mib=max(_rss_mib(pid) for pid in pids),
        files=len(files),
        database_mib=database / 2**20,
    )


def _rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])

    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _parse() -> float:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seconds", type=float)
    arguments = parser.parse_args()

    return float(arguments.seconds or arguments.minutes * 60)


def _print(samples: list[Sample]) -> None:
    print("\n| seconds | slots asked for | RSS, MiB | files | cache.db, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    places = sorted({round(part * (len(samples) - 1) / 10) for part in range(11)})
    for sample in (samples[place] for place in places):
        print(
            f"| {sample.seconds:.0f} | {sample.slots} | {sample.rss_mib:.1f} "
            f"| {sample.files} | {sample.database_mib:.1f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
