"""
Which message is next, and how far a session's `in` has been dealt with: pure bookkeeping.

The cursor that goes into a turn-complete record must be exact: a client drops the end of a turn
whose cursor is below its own message's number, and the next run starts to read behind it. So it is
held back behind every message that still waits for its turn, even when later records, such as a
stop, have been dealt with.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from td_worker.chat.payload import ChatPayload, InputRecord
from td_worker.tail import Record


@dataclass(slots=True, kw_only=True)
class Pending:
    """A message that waits for its turn."""

    seq: int | None
    """Its number on `in`; None for the message that came with the run's payload."""
    payload: ChatPayload
    stopped: bool = False
    """A stop came right behind it, before its turn had begun."""
    problem: str | None = None
    """Why it cannot be understood: its turn fails, for its client waits for the end of one."""
    origin: Record | None = None
    """What it was read from; None for the message that came with the run's payload."""


class Inbox:
    """The messages of one chat that wait for a turn, in order."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._applied_before: int | None = None
        self._pending: deque[Pending] = deque()

    def resume(self, *, resume_from: int | None, applied_through: int | None) -> None:
        """
        Go on where an earlier run has left off.

        Args:
            resume_from: The cursor of the last turn-complete: nothing up to it comes again.
            applied_through: The highest record that the earlier run has dealt with: a stop up to
                there is not applied again, to whatever turn is under way now.
        """
        self._received = resume_from
        self._applied_before = applied_through

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def received(self) -> int | None:
        """The number of the last record that came in; None before the first."""
        return self._received

    @property
    def cursor(self) -> int | None:
        """The number up to which everything is dealt with, inclusive; None before the first."""
        waiting = [pending.seq for pending in self._pending if pending.seq is not None]
        if not waiting:
            return self._received
        below = min(waiting) - 1

        return below if below >= 0 else None

    @property
    def consumed(self) -> int | None:
        """The highest number dealt with, whatever waits before it; None before the first."""
        waiting = {pending.seq for pending in self._pending}
        seq = self._received
        while seq is not None and seq in waiting:
            seq = seq - 1 if seq > 0 else None

        return seq

    def receive(
        self, seq: int, record: InputRecord, *, in_turn: bool, origin: Record | None = None
    ) -> bool:
        """
        Take a record in.

        Args:
            seq: Its number.
            record: What it means.
            in_turn: Whether a turn is under way.
            origin: What it was read from, for `leave`.

        Returns:
            Whether the turn under way is to stop.
        """
        if self._received is not None and seq <= self._received:
            return False  # a reconnect brought it once more
        self._received = seq
        if record.kind == "message":
            payload = record.payload or ChatPayload()
            self._pending.append(
                Pending(seq=seq, payload=payload, problem=record.problem, origin=origin)
            )
            return False
        if record.kind != "stop" or self._was_applied(seq):
            return False
        if in_turn:
            return True
        if self._pending:
            self._pending[-1].stopped = True

        return False

    def skip(self, seq: int) -> None:
        """Note a record that somebody else has dealt with."""
        if self._received is None or seq > self._received:
            self._received = seq

    def put(self, payload: ChatPayload) -> None:
        """Have the message of the run's own payload answered first."""
        self._pending.appendleft(Pending(seq=None, payload=payload))

    def take(self) -> Pending | None:
        """Return the next message, None when none waits."""
        return self._pending.popleft() if self._pending else None

    def peek(self) -> Pending | None:
        """Return the next message without taking it."""
        return self._pending[0] if self._pending else None

    def waiting(self) -> list[Pending]:
        """Return all that wait, in order."""
        return list(self._pending)

    def remove(self, pending: Pending) -> None:
        """Take one out of its order; nothing happens when it is gone."""
        if pending in self._pending:
            self._pending.remove(pending)

    def leave(self) -> list[Record]:
        """Forget all that wait; return what they were read from, in order."""
        left = [pending.origin for pending in self._pending if pending.origin is not None]
        self._pending.clear()

        return left

    def _was_applied(self, seq: int) -> bool:
        return self._applied_before is not None and seq <= self._applied_before
