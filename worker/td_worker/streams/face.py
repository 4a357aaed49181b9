"""What async and plain `def` code see alike of a writer and of a pipe."""

from __future__ import annotations

from td_worker.errors import StreamError
from td_worker.streams.lane import Lane
from td_worker.streams.merging import Merges
from td_worker.streams.mirror import Mirror


class LaneFace:
    """A lane as its user sees it."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    @property
    def last_event_id(self) -> str | None:
        """The sequence number of the last acked record, inclusive; None before any."""
        return self._lane.last_event_id

    def abort(self) -> None:
        """
        Take nothing more, stop what feeds it and drop what is not sent yet.

        `wait` then returns quietly, and the slot keeps its credential.
        """
        self._lane.abort()


class WriterFace(LaneFace):
    """A lane that its user writes to."""

    def __init__(self, lane: Lane) -> None:
        super().__init__(lane)
        self._merges: Merges | None = None

    def _merging(self) -> Merges:
        if self._merges is None:
            self._merges = Merges(self._lane)

        return self._merges


class HandleFace(LaneFace):
    """A lane that a source feeds."""

    def __init__(self, lane: Lane, mirror: Mirror | None = None) -> None:
        super().__init__(lane)
        self._mirror = mirror

    def _mirrored(self) -> Mirror:
        if self._mirror is None:
            raise StreamError("this pipe has no mirror: start it with `mirror=True`")

        return self._mirror


def result_of(lane: Lane) -> str | None:
    """Return a settled lane's last event id, or raise what it failed of."""
    if lane.error is not None:
        raise lane.error

    return lane.last_event_id


def appended(lane: Lane) -> int:
    """Return the number of the one record that a settled lane has written, or raise why not."""
    if lane.last_seq is None:
        raise lane.refusal()

    return lane.last_seq
