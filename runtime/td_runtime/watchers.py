"""Who waits for which run. All on one loop."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator

__all__ = ["RunPostponedError", "Watchers"]


class RunPostponedError(Exception):
    """A run that is waited for is queued, and the runtime stops before it gets its turn."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id} is queued: it is executed after the next start")


class Watchers:
    """Futures by run id, each resolved once the run has an outcome."""

    def __init__(self) -> None:
        self._futures: dict[str, set[asyncio.Future[None]]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._futures)

    def __len__(self) -> int:
        return len(self._futures)

    @contextlib.contextmanager
    def watch(self, run_ids: Iterable[str]) -> Iterator[dict[str, "asyncio.Future[None]"]]:
        """Yield a future for each run; what happens to a run from here on is not missed.

        Raises (the futures):
            RunPostponedError: It does not end in this life of the supervisor.
        """
        loop = asyncio.get_running_loop()
        watched = {run_id: loop.create_future() for run_id in dict.fromkeys(run_ids)}
        for run_id, future in watched.items():
            self._futures.setdefault(run_id, set()).add(future)
        try:
            yield watched
        finally:
            for run_id, future in watched.items():
                self._forget(run_id, future)

    def ended(self, run_id: str) -> None:
        """Tell that a run has its outcome."""
        for future in self._waiting_for(run_id):
            future.set_result(None)

    def postponed(self, run_id: str) -> None:
        """Tell that a run will not be started any more."""
        for future in self._waiting_for(run_id):
            future.set_exception(RunPostponedError(run_id))

    def _waiting_for(self, run_id: str) -> list["asyncio.Future[None]"]:
        return [future for future in self._futures.get(run_id, ()) if not future.done()]

    def _forget(self, run_id: str, future: "asyncio.Future[None]") -> None:
        if future.done() and not future.cancelled():
            future.exception()  # heard: of several that were postponed the first one is told
        self._futures[run_id].discard(future)
        if not self._futures[run_id]:
            del self._futures[run_id]
