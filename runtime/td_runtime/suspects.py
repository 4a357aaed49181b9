"""Runs that may have killed a worker, and therefore run alone (rule R8). Sets of ids, no I/O."""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

__all__ = ["Suspects"]

_PROBATION: Final = 1.0
"""Seconds of a loop's probation beyond twice what it had lived."""

_LONGEST_PROBATION: Final = 60.0
"""Seconds: on a host with few workers everything else waits for a loop that runs alone."""


class Suspects:
    """Who was in a worker with others when it died.

    Nobody is blamed for such a death. Each of the neighbours is executed alone from then on, until
    one of them dies alone, which clears the others, or ends in any other way, which clears itself.
    One that was caught goes on running alone, so that it takes nobody with it.

    A loop never ends, and would have its worker to itself for ever: it is trusted again once it has
    run alone for longer than it had when its worker died, and after a minute at the latest.
    """

    def __init__(self) -> None:
        self._groups: dict[str, set[str]] = {}
        self._probation: dict[str, float] = {}
        self._not_before: dict[str, float] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._groups

    def __len__(self) -> int:
        return len(self._groups)

    def died_together(self, run_ids: Iterable[str], *, lived: float = 0.0) -> None:
        """Suspect all of these: their worker died, and one of them may have killed it.

        Args:
            run_ids: The runs.
            lived: Seconds that the oldest of their attempts had gone on.
        """
        ids = list(run_ids)
        group = set(ids)
        for run_id in ids:
            self.cleared(run_id)
            self._groups[run_id] = group
            self._probation[run_id] = min(_PROBATION + 2 * lived, _LONGEST_PROBATION)

    def probation(self, run_id: str) -> float:
        """Return the seconds alone after which a loop that is suspected is trusted again."""
        return self._probation.get(run_id, _PROBATION)

    def caught(self, run_id: str, *, not_before: float = 0.0) -> None:
        """Clear those who died with this run: it has died alone.

        Args:
            run_id: The run.
            not_before: When it is tried again.
        """
        for each in self._groups.get(run_id, {run_id}):
            self._forget(each)
        self._groups[run_id] = {run_id}
        self._not_before[run_id] = not_before

    def cleared(self, run_id: str) -> None:
        """Trust this run again: its attempt has ended, and its worker lives."""
        group = self._groups.get(run_id)
        if group is not None:
            group.discard(run_id)
            self._forget(run_id)

    def waiting(self, now: float, *, held: Collection[str]) -> list[str]:
        """Return those who may start and that no worker has."""
        return [
            run_id
            for run_id in self._groups
            if run_id not in held and self._not_before.get(run_id, 0.0) <= now
        ]

    def _forget(self, run_id: str) -> None:
        self._groups.pop(run_id, None)
        self._not_before.pop(run_id, None)
        self._probation.pop(run_id, None)
