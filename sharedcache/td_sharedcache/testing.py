"""Stand-ins for tests: a cache without a folder, a minter with a script, a clock that stands still.

Example:
    >>> minter = ScriptedMinter()
    >>> cache = InMemoryCredentialCache(minter)
    >>> cache.get_blocking(Slot.run("run_1", "chat")).access_token == minter.tokens[0]
    True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from td_sharedcache.cache import CredentialCache
from td_sharedcache.credential import Grant
from td_sharedcache.minter import AsyncMinter, Minter
from td_sharedcache.policy import Clock
from td_sharedcache.seal import Seal
from td_sharedcache.slot import Slot
from td_sharedcache.store import MemoryStore, Store

Answer = Grant | Exception | Callable[[Slot], Grant]


class FrozenClock:
    """A clock that moves only when told to; pass its `clock` to a cache."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self.clock = Clock(wall=self._read, monotonic=self._read)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    def _read(self) -> float:
        return self._now


class ScriptedMinter:
    """A minter that answers from a script, and with new grants once the script has run out.

    Attributes:
        slots: What it was asked for, in order.
        tokens: The tokens it handed out, in order.
    """

    def __init__(self, script: Iterable[Answer] = ()) -> None:
        self._script = list(script)
        self.slots: list[Slot] = []
        self.tokens: list[str] = []

    def mint(self, slot: Slot) -> Grant:
        """Answer as the script says."""
        self.slots.append(slot)
        answer = self._script.pop(0) if self._script else make_grant(slot, len(self.slots))
        if isinstance(answer, Exception):
            raise answer
        grant = answer if isinstance(answer, Grant) else answer(slot)
        self.tokens.append(grant.access_token)

        return grant


class InMemoryCredentialCache(CredentialCache):
    """A cache that shares with nobody and writes nothing; otherwise the real one."""

    def __init__(self, minter: AsyncMinter | Minter, **options: Any) -> None:
        super().__init__(Path(), origin="memory", api_key="memory", minter=minter, **options)

    def _open_store(self, directory: Path, seal: Seal) -> Store:  # noqa: ARG002  needs neither
        return MemoryStore()


def make_grant(slot: Slot, number: int = 1) -> Grant:
    """Make a grant whose token tells which one it is."""
    return Grant(
        access_token=f"token-{number}-{slot}",
        basin="basin",
        stream=str(slot),
        endpoint="http://127.0.0.1/v1",
        flush_interval=0.2,
        max_retries=3,
        version="v2",
    )
