"""Claims on part ids: a client that sends a record again within minutes has it stored once."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

CLAIM_S: Final = 300.0
CLAIMS_KEPT: Final = 100_000


class PartClaims:
    """The part ids of the last minutes, by stream. They end with the process."""

    def __init__(self) -> None:
        self._claims: OrderedDict[tuple[str, str], float] = OrderedDict()

    def claim(self, stream: str, part_id: str) -> bool:
        """Take a part id; False if somebody has it."""
        now = time.monotonic()
        self._forget(now)
        if (stream, part_id) in self._claims:
            return False
        self._claims[stream, part_id] = now + CLAIM_S

        return True

    def release(self, stream: str, part_id: str) -> None:
        """Give it back: the record was not stored."""
        self._claims.pop((stream, part_id), None)

    def _forget(self, now: float) -> None:
        while self._claims:
            key, until = next(iter(self._claims.items()))
            if until > now and len(self._claims) < CLAIMS_KEPT:
                return
            del self._claims[key]
