from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from td_runtime.control import NotRunningError
from td_runtime.gateway.platform.claims import PartClaims
from td_runtime.gateway.platform.runs import Run
from td_runtime.gateway.platform.session_runs import SessionRuns, make_payload
from td_runtime.gateway.platform.sessions import Session, Sessions, new_session_id, now_ms
from td_runtime.gateway.platform.storage import Storage


class Supervisor:
    """Stands in for the supervisor and its store: dedupes by key, as that does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.by_key: dict[str, str] = {}
        self.finished: set[str] = set()
        self.answers_lost = 0

    async def trigger(self, items: list[Any]) -> list[str]:
        (item,) = items
        self.asked.append(item.idempotency_key)
        run_id = self.by_key.setdefault(item.idempotency_key, f"run_{len(self.by_key)}")
        await asyncio.sleep(0)
        if self.answers_lost:
            self.answers_lost -= 1
            raise NotRunningError("it died after it had accepted the run")
        return [run_id]

    def find(self, run_id: str) -> Run:
        return Run(run_id, "COMPLETED" if run_id in self.finished else "EXECUTING")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Sessions, Supervisor, SessionRuns]]:
    storage = Storage.open(str(folder / "platform.db"))
    sessions, supervisor = Sessions(storage), Supervisor()
    try:
        yield sessions, supervisor, SessionRuns(sessions, supervisor, supervisor)  # type: ignore[arg-type]
    finally:
        sessions.close()
        storage.close()


def make(**more: Any) -> Session:
    fields: dict[str, Any] = {
        "id": new_session_id(),
        "external_id": "chat",
        "type": "chat.agent",
        "task_identifier": "agent",
        "trigger_config": {"basePayload": {"chatId": "chat"}},
        "tags": [],
        "metadata": None,
        "created_at": now_ms(),
        "updated_at": now_ms(),
        **more,
    }
    return Session(**fields)


async def test_a_crowd_starts_one_run(tmp_path: Path) -> None:
    """Fifty who need a live run at once ask for it once, and all see the same one."""
    async with opened(tmp_path) as (sessions, supervisor, session_runs):
        session, _ = await sessions.create(make())
        found = await asyncio.gather(*(session_runs.ensure(session) for _ in range(50)))

    assert supervisor.asked == [f"{session.id}/0"]
    assert {one.current_run_id for one in found} == {"run_0"}


async def test_of_two_tasks_that_start_one_session_the_second_changes_nothing(
    tmp_path: Path,
) -> None:
    """Asked for at once: the write looks, not who asks, so that none slips in between."""
    async with opened(tmp_path) as (sessions, _, _):
        others = make(task_identifier="other", trigger_config={"basePayload": {}})
        (first, is_new), (second, is_second_new) = await asyncio.gather(
            sessions.create(make()),
            sessions.create(others, may_change=lambda there: there.task_identifier == "other"),
        )
        stored = sessions.find("chat")

    assert (is_new, is_second_new) == (True, False)
    assert first == second == stored


async def test_a_lost_answer_starts_no_second_run(tmp_path: Path) -> None:
    """Whoever asks again after a supervisor died with its answer is given the same run."""
    async with opened(tmp_path) as (sessions, supervisor, session_runs):
        session, _ = await sessions.create(make())
        supervisor.answers_lost = 1
        with pytest.raises(NotRunningError):
            await session_runs.ensure(session)
        found = await session_runs.ensure(session)

    assert supervisor.asked == [f"{session.id}/0"] * 2
    assert (found.current_run_id, len(supervisor.by_key)) == ("run_0", 1)


async def test_each_run_has_its_number(tmp_path: Path) -> None:
    """A finished run is followed by one with the next number; a live one by none."""
    async with opened(tmp_path) as (sessions, supervisor, session_runs):
        session, _ = await sessions.create(make())
        for number in range(3):
            live = await session_runs.ensure(session)
            assert (await session_runs.ensure(live)).current_run_id == f"run_{number}"
            supervisor.finished.add(f"run_{number}")

    assert supervisor.asked == [f"{session.id}/{number}" for number in range(3)]


async def test_a_stale_claim_is_refused(tmp_path: Path) -> None:
    """A run claimed with an old number does not become the session's."""
    async with opened(tmp_path) as (sessions, _, _):
        session, _ = await sessions.create(make())

        claims = [await sessions.claim(session, run_id) for run_id in ("run_a", "run_b")]
        found = sessions.find("chat")

    assert claims == [True, False]
    assert found is not None
    assert (found.current_run_id, found.current_run_version) == ("run_a", 1)


def test_a_continuation_is_told_so() -> None:
    """The opening of the first run is cleared from the next one's payload; our own words win."""
    base = {
        "message": 1,
        "messages": [],
        "trigger": "x",
        "metadata": {"u": 1},
        "sessionId": "forged",
        "previousRunId": "forged",
    }
    session = make(trigger_config={"basePayload": base, "idleTimeoutInSeconds": 5})

    first = make_payload(session, previous=None)
    following = make_payload(session, previous="run_1")

    assert first == {**base, "sessionId": session.id, "idleTimeoutInSeconds": 5}
    assert following == {
        "metadata": {"u": 1},
        "sessionId": session.id,
        "idleTimeoutInSeconds": 5,
        "continuation": True,
        "previousRunId": "run_1",
    }


def test_claims_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part id is free again after five minutes, and the oldest is when there are too many."""
    now = 0.0
    monkeypatch.setattr("td_runtime.gateway.platform.claims.time.monotonic", lambda: now)
    monkeypatch.setattr("td_runtime.gateway.platform.claims.CLAIMS_KEPT", 2)
    claims = PartClaims()

    first = [claims.claim("s", "a"), claims.claim("s", "a"), claims.claim("t", "a")]
    crowded = [claims.claim("s", "b"), claims.claim("s", "a")]
    now = 301.0
    later = claims.claim("s", "a")

    assert (first, crowded, later) == ([True, False, True], [True, True], True)


def test_session_ids_sort_by_time() -> None:
    """Ids begin with the moment they were made, so that a list by id is one by time."""
    ids = [new_session_id() for _ in range(100)]

    assert len(set(ids)) == 100
    assert [one[:18] for one in ids] == sorted(one[:18] for one in ids)
    assert {len(one) for one in ids} == {33}
