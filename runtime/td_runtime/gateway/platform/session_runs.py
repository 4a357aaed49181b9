"""The runs of sessions: every session has one that lives, or gets one.

Two things keep it at one. Requests of one session take turns in this process, which is the only
one that starts its runs; and the run is asked for with an idempotency key made of the session and
the number of its run, so that whoever asks again for the same one is given the same one: a
gateway that died before it had noted the run's id, say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec

from td_runtime.gateway.platform.runs import Run, Runs
from td_runtime.gateway.platform.sessions import Session, Sessions
from td_runtime.gateway.supervisor_link import SupervisorLink

ATTEMPTS: Final = 3
_CLEARED: Final = ("message", "messages", "trigger")


class SessionRuns:
    """Starts the runs of sessions."""

    def __init__(self, sessions: Sessions, runs: Runs, link: SupervisorLink) -> None:
        self._sessions = sessions
        self._runs = runs
        self._link = link
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ending: dict[str, Run] = {}

    def is_live(self, session: Session) -> bool:
        """Whether the session has a run that takes messages: one that has not said it ends."""
        if session.current_run_id is None:
            return False
        run = self._runs.find(session.current_run_id)

        return run is not None and not run.is_finished and not self._is_ending(session, run)

    async def ensure(self, session: Session) -> Session:
        """The session with a live run: its own, or one that is started now.

        Raises:
            NotRunningError: No supervisor answers.
            ControlRefusedError: The supervisor refuses the run, for an unknown task, say.
            StoreUnavailableError: The run was started, but the session could not be changed.
        """
        if self.is_live(session):
            return session
        async with self._turn(session):
            for _ in range(ATTEMPTS):
                session = self._sessions.find(session.id) or session
                if self.is_live(session):
                    break
                _, is_claimed = await self._start(session, previous=session.current_run_id)
                if is_claimed:  # it may be over already, but it has had its turn
                    break

        return self._sessions.find(session.id) or session

    async def hand_over(self, session: Session, calling_run_id: str) -> tuple[str, bool]:
        """Start the run that takes over from ``calling_run_id``; raises as :meth:`ensure`.

        Returns:
            The session's run from now on, and whether it was started for this call; it is not
            when the caller's run is not the session's any more.
        """
        async with self._turn(session):
            session = self._sessions.find(session.id) or session
            if session.current_run_id is not None and session.current_run_id != calling_run_id:
                return session.current_run_id, False
            return await self._start(session, previous=calling_run_id)

    async def end(
        self, session: Session, calling_run_id: str, has_more: Callable[[], Awaitable[bool]]
    ) -> tuple[str | None, bool]:
        """Let a run take no more messages; start the next one when it has not seen them all.

        A message that comes before the run is marked is found by ``has_more``, and one that comes
        after finds no live run: none is left to wait.

        Args:
            session: The session.
            calling_run_id: The run that is about to end.
            has_more: Says whether there are messages that it has not seen.

        Returns:
            The session's run from now on, and whether it was started for this call; raises as
            :meth:`ensure`.
        """
        async with self._turn(session):
            session = self._sessions.find(session.id) or session
            run = self._runs.find(calling_run_id)
            if run is None or session.current_run_id != calling_run_id:
                return session.current_run_id, False
            self._forget_ended()
            self._ending[session.id] = run
            if not await has_more():
                return calling_run_id, False
            return await self._start(session, previous=calling_run_id)

    def _is_ending(self, session: Session, run: Run) -> bool:
        """Whether this attempt of the run is the one that has said it ends."""
        ending = self._ending.get(session.id)

        return ending is not None and (ending.id, ending.attempt) == (run.id, run.attempt)

    def _forget_ended(self) -> None:
        """Forget the runs that are over by now, which is all but a few."""
        for session_id, run in list(self._ending.items()):
            now = self._runs.find(run.id)
            if now is None or now.is_finished:
                del self._ending[session_id]

    def _turn(self, session: Session) -> asyncio.Lock:
        return self._turns.setdefault(session.id, asyncio.Lock())

    async def _start(self, session: Session, *, previous: str | None) -> tuple[str, bool]:
        from td_worker.messages import TriggerItem

        item = TriggerItem(
            task=session.task_identifier,
            payload=msgspec.json.encode(make_payload(session, previous=previous)),
            idempotency_key=f"{session.id}/{session.current_run_version}",
        )
        (run_id,) = await self._link.trigger([item])

        return run_id, await self._sessions.claim(session, run_id)


def make_payload(session: Session, *, previous: str | None) -> Mapping[str, Any]:
    """What a session's run is given.

    Args:
        session: The session.
        previous: The run it goes on from; None for the first one.
    """
    config = session.trigger_config
    payload = {**config["basePayload"], "sessionId": session.id}
    if config.get("idleTimeoutInSeconds") is not None:
        payload["idleTimeoutInSeconds"] = config["idleTimeoutInSeconds"]
    if previous is None:
        return payload
    for name in _CLEARED:  # what the first run was started with has been answered
        payload.pop(name, None)

    return {**payload, "continuation": True, "previousRunId": previous}
