"""The clients: they ask for runs and cancel some, whatever becomes of the supervisor meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Self, TypeVar

import msgspec

from td_runtime.control import (
    Accepted,
    CanceledRuns,
    CancelRuns,
    ControlClient,
    ControlRefusedError,
    NotRunningError,
    TriggerRuns,
)
from tests.chaos_runs import records
from tests.chaos_runs.host import Host
from tests.chaos_runs.plan import Wish, batches
from tests.chaos_runs.scale import Scale

_REFUSED_PAUSE = 0.2

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)


class Clients:
    """Asks for all that is planned, each part at its time, in threads of their own.

    Attributes:
        told: By wish, the ids that requests for it were answered with, in the order of the answers.
        found: By wish, the run that is there of a request whose answer was lost.
        errors: Why a client gave up; a fault of the campaign or of the runtime.
    """

    def __init__(self, scale: Scale, host: Host, wishes: list[Wish]) -> None:
        self._host = host
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._cancels: list[tuple[float, int, str]] = []
        self.told: dict[int, list[str]] = {wish.number: [] for wish in wishes}
        self.found: dict[int, str] = {}
        self.lost_answers = 0
        self.canceled = 0
        self.errors: list[str] = []
        half = batches(wishes[::2], scale.seed), batches(wishes[1::2], scale.seed + 1)
        repeats = sorted((due, wish.number) for wish in wishes for due in wish.repeats)
        again = [(due, [wishes[number]]) for due, number in repeats]
        self._askers = [
            self._thread(partial(self._ask, [(batch[0].due, batch) for batch in part]))
            for part in half
        ]
        self._askers.append(self._thread(partial(self._ask, again)))
        self._canceler = self._thread(self._cancel)

    def start(self) -> None:
        """Begin."""
        self._began = time.monotonic()
        for thread in (*self._askers, self._canceler):
            thread.start()

    @property
    def are_done(self) -> bool:
        """Whether all is asked for and all cancellations are answered."""
        with self._lock:
            return not self._cancels and not any(thread.is_alive() for thread in self._askers)

    def end(self, patience: float) -> None:
        """Have the clients end."""
        self._over.set()
        for thread in (*self._askers, self._canceler):
            thread.join(patience)

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self.errors.append(f"a client failed: {error!r}")

        return threading.Thread(target=run, daemon=True)

    # ------------------------------------------------------------ asking

    def _ask(self, requests: list[tuple[float, list[Wish]]]) -> None:
        with _Line(self._host, self._over) as line:
            self._ask_over(line, requests)

    def _ask_over(self, line: _Line, requests: list[tuple[float, list[Wish]]]) -> None:
        after = ""
        for due, batch in requests:
            self._over.wait(max(0.0, self._began + due - time.monotonic()))
            missing = batch
            while missing and not self._over.is_set():
                items = [wish.item(time.time()) for wish in missing]
                answer = line.ask(TriggerRuns(items=items), Accepted)
                if answer is not None:
                    self._note(missing, answer.run_ids)
                    after = max(after, *answer.run_ids)
                    break
                self.lost_answers += 1
                # The answer is lost. Keyed runs are simply asked for again.
                missing = self._missing(missing, after)

    def _missing(self, batch: list[Wish], after: str) -> list[Wish]:
        """Return what is still to be asked for, once a new supervisor lives."""
        while not self._host.is_up.wait(0.1) and not self._over.is_set():
            pass
        once = {wish.number: wish for wish in batch if wish.key is None}
        there = records.root_ids(self._host.data_dir.run_store, set(once), after=after)
        self.found.update(there)
        for number, run_id in there.items():
            self._plan_cancel(once[number], run_id)

        return [wish for wish in batch if wish.number not in there]

    def _note(self, batch: list[Wish], run_ids: list[str]) -> None:
        for wish, run_id in zip(batch, run_ids, strict=True):
            self.told[wish.number].append(run_id)
            self._plan_cancel(wish, run_id)

    # ------------------------------------------------------------ canceling

    def _plan_cancel(self, wish: Wish, run_id: str) -> None:
        if wish.cancel_after is not None:
            with self._lock:
                due = time.monotonic() + wish.cancel_after
                self._cancels.append((due, wish.number, run_id))

    def _cancel(self) -> None:
        with _Line(self._host, self._over) as line:
            while not self._over.wait(0.02):
                with self._lock:
                    due = [each for each in self._cancels if each[0] <= time.monotonic()]
                if due and self._is_canceled(line, [run_id for _, _, run_id in due]):
                    with self._lock:
                        self._cancels = [each for each in self._cancels if each not in due]

    def _is_canceled(self, line: _Line, run_ids: list[str]) -> bool:
        answer = line.ask(CancelRuns(run_ids=run_ids), CanceledRuns)
        if answer is None:
            return False
        self.canceled += len(answer.canceled) + len(answer.requested)
        if answer.unknown:
            self.errors.append(f"unknown when they were canceled: {answer.unknown}")

        return True


class _Line:
    """A connection to whichever supervisor lives."""

    def __init__(self, host: Host, over: threading.Event) -> None:
        self._host = host
        self._over = over
        self._client: ControlClient | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()

    def ask(self, request: msgspec.Struct, kind: type[AnswerT]) -> AnswerT | None:
        """Return the answer; None when there is none, and nobody knows what was done."""
        while not self._over.is_set():
            try:
                return self._connected().ask(request, kind)
            except NotRunningError:
                if self._hang_up():
                    return None
                self._over.wait(_REFUSED_PAUSE)
            except ControlRefusedError:
                # It stops, or its queue is full: nothing was done.
                self._over.wait(_REFUSED_PAUSE)

        return None

    def _hang_up(self) -> bool:
        client, self._client = self._client, None
        if client is not None:
            client.close()

        return client is not None

    def _connected(self) -> ControlClient:
        if self._client is None:
            self._client = ControlClient(self._host.data_dir, name="chaos")

        return self._client
