"""What one process tells the others about a dead credential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from td_sharedcache.slot import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A credential was evicted; without a slot: every credential of the namespace was dropped.

    Idempotent, unordered, and never carries a token. Losing one costs a failed write, not
    correctness.
    """

    slot: Slot | None
    credential_id: str | None
    reason: str
    pid: int
    at: float
    """Wall-clock seconds."""

    def to_dict(self) -> dict[str, Any]:
        """Give the notice as plain values for whatever carries it."""
        return {
            "slot": None if self.slot is None else str(self.slot),
            "credential_id": self.credential_id,
            "reason": self.reason,
            "pid": self.pid,
            "at": self.at,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Notice:
        """Read what `to_dict` wrote; unknown keys are left alone."""
        slot = values["slot"]

        return cls(
            slot=None if slot is None else Slot(slot),
            credential_id=values["credential_id"],
            reason=str(values["reason"]),
            pid=int(values["pid"]),
            at=float(values["at"]),
        )
