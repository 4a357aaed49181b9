"""
Sessions, for plain `def` tasks: `from td_worker.sync import sessions`.

The same names and meanings as `td_worker.sessions`, whose docstrings say the rest:

```python
from td_worker.sync import sessions

session = sessions.open(payload["sessionId"])
with session.out.writer() as w:
    w.write({"type": "text", "text": "Hello"})
answer = session.in_.wait(timeout=3600).unwrap()
```
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from datetime import datetime
from typing import Any

import msgspec

from td_worker.blocking_session_channels import (
    SessionChannel,
    SessionHandle,
    SessionIn,
    SessionOut,
)
from td_worker.context import refuse_on_event_loop
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
    Return a session to write to and to read from; see `td_worker.sessions.open`.

    ```python
    session = sessions.open("order-17")
    ```
    """
    return SessionHandle(session_id)


def start(
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
    Start a session and its first run; see `td_worker.sessions.start`.

    ```python
    session = sessions.start("support", "answer", external_id="order-17")
    ```
    """
    refuse_on_event_loop("sessions.start")
    body = start_body(
        type,
        task,
        config=config,
        external_id=external_id,
        tags=tags,
        metadata=metadata,
        expires_at=expires_at,
    )

    return ask("POST", SESSIONS, StartedSession, body=body, retries_conflict=False).result()


def retrieve(session_id: str) -> Session:
    """
    Return what is known of a session; see `td_worker.sessions.retrieve`.

    ```python
    session = sessions.retrieve("order-17")
    ```
    """
    refuse_on_event_loop("sessions.retrieve")

    return ask("GET", session_path(session_id), Session).result()


def update(
    session_id: str,
    *,
    tags: Iterable[str] | msgspec.UnsetType = msgspec.UNSET,
    metadata: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET,
) -> Session:
    """
    Change what is kept with a session; see `td_worker.sessions.update`.

    ```python
    sessions.update("order-17", tags=["vip"])
    ```
    """
    refuse_on_event_loop("sessions.update")
    body = update_body(tags, metadata)

    return ask("PATCH", session_path(session_id), Session, body=body).result()


def close(session_id: str, *, reason: str | None = None) -> Session:
    """
    End a session, for good; see `td_worker.sessions.close`.

    ```python
    sessions.close("order-17", reason="delivered")
    ```
    """
    refuse_on_event_loop("sessions.close")
    path, body = session_path(session_id, "/close"), close_body(reason)

    return ask("POST", path, Session, body=body).result()


def list(  # noqa: A001  the official SDK's word
    *,
    type: str | None = None,  # noqa: A002
    tags: Iterable[str] = (),
    task: str | None = None,
    external_id: str | None = None,
    status: SessionStatus | None = None,
    created_from: datetime | None = None,
    created_to: datetime | None = None,
    page_size: int | None = None,
) -> Generator[Session, None, None]:
    """
    Return all sessions that fit every filter given; see `td_worker.sessions.list`.

    ```python
    for session in sessions.list(status="ACTIVE", task="answer"):
        print(session.id)
    ```
    """
    refuse_on_event_loop("sessions.list")
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
        page = ask_page(query).result()
        yield from page.data
        after = page.pagination.next
        if after is None:
            return
