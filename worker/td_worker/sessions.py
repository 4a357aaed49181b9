"""
Sessions, for async tasks. Plain `def` tasks: `from td_worker.sync import sessions`.

A session outlives its runs: what clients send (`in_`) and what they see (`out`) stays, while runs
of its task come and go.

```python
from td_worker import sessions

session = sessions.open(payload["sessionId"])
async with session.out.writer() as w:
    await w.write({"type": "text", "text": "Hello"})
answer = (await session.in_.wait(timeout=3600)).unwrap()
```
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from datetime import datetime
from typing import Any

import msgspec

from td_worker.input_calls import InputResult, Subscription
from td_worker.session_calls import (
    SESSIONS,
    Control,
    ask,
    ask_page,
    close_body,
    page_size_of,
    session_path,
)
from td_worker.session_channels import SessionChannel, SessionHandle, SessionIn, SessionOut
from td_worker.session_items import (
    Session,
    SessionStatus,
    StartedSession,
    TriggerConfig,
    list_query,
    start_body,
    update_body,
)
from td_worker.tail import Record

__all__ = [
    "Control",
    "InputResult",
    "Record",
    "Session",
    "SessionChannel",
    "SessionHandle",
    "SessionIn",
    "SessionOut",
    "StartedSession",
    "Subscription",
    "TriggerConfig",
    "close",
    "list",
    "open",
    "retrieve",
    "start",
    "update",
]


def open(session_id: str) -> SessionHandle:  # noqa: A001  the official SDK's word
    """
    Return a session to write to and to read from, by either of its ids; needs no request.

    ```python
    session = sessions.open("order-17")
    ```

    Args:
        session_id: What the control plane calls it (`session_...`), or its external id.

    Raises:
        SessionIdError: It cannot be the id of a session.
    """
    return SessionHandle(session_id)


async def start(
    type: str,  # noqa: A002  the official SDK's word
    task: str,
    *,
    external_id: str | None = None,
    config: TriggerConfig | None = None,
    tags: Iterable[str] = (),
    metadata: dict[str, Any] | None = None,
    expires_at: datetime | None = None,
) -> StartedSession:
    """
    Start a session and its first run, or find the one that has this external id.

    ```python
    session = await sessions.start("support", "answer", external_id="order-17")
    ```

    Args:
        type: What kind of session it is; 1 to 64 characters.
        task: The id of the task that serves it.
        external_id: Your own name for it; 1 to 256 characters, not beginning with `session_`.
        config: How its runs are started; one that was there before takes this over, and only this.
        tags: Up to 10.
        metadata: Kept with it.
        expires_at: When it ends by itself; with a time zone.

    Raises:
        NotInTaskError: No task is running.
        SessionClosedError: The session of this external id is over.
        ControlPlaneError: It was not started; the message says what to do.
    """
    body = start_body(
        type,
        task,
        config=config,
        external_id=external_id,
        tags=tags,
        metadata=metadata,
        expires_at=expires_at,
    )
    # A conflict is a session that is over: it does not pass by itself.
    started = ask("POST", SESSIONS, StartedSession, body=body, retries_conflict=False)

    return await asyncio.wrap_future(started)


async def retrieve(session_id: str) -> Session:
    """
    Return what is known of a session, by either of its ids.

    ```python
    session = await sessions.retrieve("order-17")
    ```

    Raises:
        ControlPlaneError: There is no such session, or no answer.
    """
    return await asyncio.wrap_future(ask("GET", session_path(session_id), Session))


async def update(
    session_id: str,
    *,
    tags: Iterable[str] | msgspec.UnsetType = msgspec.UNSET,
    metadata: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET,
) -> Session:
    """
    Change what is kept with a session; what is not given stays, and None clears the metadata.

    ```python
    await sessions.update("order-17", tags=["vip"])
    ```

    Raises:
        ControlPlaneError: There is no such session, or it was not changed.
    """
    body = update_body(tags, metadata)

    return await asyncio.wrap_future(ask("PATCH", session_path(session_id), Session, body=body))


async def close(session_id: str, *, reason: str | None = None) -> Session:
    """
    End a session, for good; to close it again changes nothing.

    ```python
    await sessions.close("order-17", reason="delivered")
    ```

    Args:
        session_id: Either of its ids.
        reason: Kept with it; up to 256 characters.

    Raises:
        ControlPlaneError: There is no such session, or no answer.
    """
    path, body = session_path(session_id, "/close"), close_body(reason)

    return await asyncio.wrap_future(ask("POST", path, Session, body=body))


async def list(  # noqa: A001  the official SDK's word
    *,
    type: str | None = None,  # noqa: A002
    tags: Iterable[str] = (),
    task: str | None = None,
    external_id: str | None = None,
    status: SessionStatus | None = None,
    created_from: datetime | None = None,
    created_to: datetime | None = None,
    page_size: int | None = None,
) -> AsyncGenerator[Session, None]:
    """
    Return all sessions that fit every filter given, asked for page by page.

    ```python
    async for session in sessions.list(status="ACTIVE", task="answer"):
        print(session.id)
    ```

    Args:
        type: Of this kind.
        tags: With any of these tags.
        task: Served by this task.
        external_id: With this name.
        status: `ACTIVE`, `CLOSED` or `EXPIRED`.
        created_from: Not created before.
        created_to: Not created after.
        page_size: How many to ask for at once; 1 to 100.

    Raises:
        ControlPlaneError: They cannot be listed.
    """
    after: str | None = None
    size, tags = page_size_of(page_size), tuple(tags)
    while True:
        query = list_query(
            after=after,
            page_size=size,
            type=type,
            tags=tags,
            task=task,
            external_id=external_id,
            status=status,
            created_from=created_from,
            created_to=created_to,
        )
        page = await asyncio.wrap_future(ask_page(query))
        for session in page.data:
            yield session
        after = page.pagination.next
        if after is None:
            return
