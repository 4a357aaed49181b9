"""What a hit in the credential cache costs, beside the least it could cost.

The least is a look-up in a dict and a compare of the time, in a method, which is what a hit must be
(rule C2). Run it with `make bench`, or `.venv/bin/python benchmarks/cache_hit.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from _figures import medians, print_table

from td_sharedcache import Credential, Slot
from td_sharedcache.testing import InMemoryCredentialCache, ScriptedMinter

HITS = 200_000
SLOT = Slot.run("run_06h0h0x33g2pkmv1a2nsed2za", "chat")


class BareDict:
    """A dict whose values expire."""

    def __init__(self, credential: Credential) -> None:
        self._entries = {SLOT: (time.monotonic() + 3600, credential)}

    def get(self, slot: Slot) -> Credential | None:
        """Look up and compare."""
        entry = self._entries.get(slot)
        if entry is None or entry[0] <= time.monotonic():
            return None

        return entry[1]

    async def get_async(self, slot: Slot) -> Credential | None:
        """Do the same behind an await."""
        return self.get(slot)


def time_calls(get: Callable[[Slot], object]) -> float:
    """Return the microseconds of one plain call."""
    started = time.perf_counter()
    for _ in range(HITS):
        get(SLOT)

    return (time.perf_counter() - started) / HITS * 1e6


def time_awaits(get: Callable[[Slot], Awaitable[object]]) -> float:
    """Return the microseconds of one awaited call."""

    async def loop() -> float:
        started = time.perf_counter()
        for _ in range(HITS):
            await get(SLOT)

        return (time.perf_counter() - started) / HITS * 1e6

    return asyncio.run(loop())


def main() -> None:
    # Without a folder: a hit never gets there. Everything before the folder is the real cache.
    cache = InMemoryCredentialCache(ScriptedMinter())
    bare = BareDict(cache.get_blocking(SLOT))
    took = medians(
        {
            "bare dict": lambda: time_calls(bare.get),
            "CredentialCache.peek": lambda: time_calls(cache.peek),
            "CredentialCache.get_blocking": lambda: time_calls(cache.get_blocking),
            "bare dict, awaited": lambda: time_awaits(bare.get_async),
            "CredentialCache.get, awaited": lambda: time_awaits(cache.get),
        }
    )
    goals = {"CredentialCache.get_blocking": "0.2", "CredentialCache.get, awaited": "0.3"}
    print_table(
        "A hit in the process's own cache",
        ["call", "µs a hit", "goal"],
        [[name, f"{us:.3f}", goals.get(name, "")] for name, us in took.items()],
    )


if __name__ == "__main__":
    main()
