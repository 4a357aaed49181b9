"""What the control plane says of sessions, and what it is told: typed, with the wire's names."""

# msgspec reads the annotations of these classes, so they must not be postponed.
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import urlencode

import msgspec

from td_sharedcache.credential import Secret

__all__ = ["Session", "SessionStatus", "StartedSession", "TriggerConfig"]

SessionStatus = Literal["ACTIVE", "CLOSED", "EXPIRED"]

PAGE_SIZE: Final = 100
"""Sessions asked for at once; the most that a control plane gives."""


class TriggerConfig(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    omit_defaults=True,
):
    """
    How the runs of a session are started.

    ```python
    config = sessions.TriggerConfig(base_payload={"model": "small"}, max_attempts=2)
    await sessions.start("support", "answer", external_id="order-18", config=config)
    ```
    """

    base_payload: dict[str, Any] = {}
    """What every run gets as its payload, besides `sessionId`."""
    machine: str | None = None
    queue: str | None = None
    tags: tuple[str, ...] | None = None
    max_attempts: int | None = None
    max_duration: int | None = None
    """Seconds."""
    lock_to_version: str | None = None
    region: str | None = None
    idle_timeout_in_seconds: int | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """
    A session as the control plane keeps it.

    ```python
    session = await sessions.retrieve("order-17")
    print(session.id, session.current_run_id, session.closed_at)
    ```
    """

    id: str
    """Given by the control plane: `session_...`."""
    type: str
    task_identifier: str
    created_at: datetime
    updated_at: datetime
    external_id: str | None = None
    """Given by who started it."""
    trigger_config: TriggerConfig | None = None
    current_run_id: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = None
    closed_at: datetime | None = None
    closed_reason: str | None = None
    expires_at: datetime | None = None


class StartedSession(Session, frozen=True, kw_only=True, rename="camel"):
    """
    What `sessions.start` returns.

    ```python
    session = await sessions.start("support", "answer", external_id="order-19")
    token = session.public_access_token  # for the browser
    ```
    """

    run_id: str
    """The run that serves the session."""
    public_access_token: str
    """For a browser: may read and write this session for an hour. Masked in the repr."""
    is_cached: bool = False
    """The session was there before."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "public_access_token", Secret(self.public_access_token))


class _Pagination(msgspec.Struct):
    next: str | None = None


class SessionPage(msgspec.Struct):
    """One answer to a request for a list."""

    data: list[Session]
    pagination: _Pagination = msgspec.field(default_factory=_Pagination)


class _Start(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    type: str
    task_identifier: str
    trigger_config: dict[str, Any]
    external_id: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = None
    expires_at: datetime | None = None


class _Update(msgspec.Struct, kw_only=True, rename="camel"):
    tags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


def start_body(
    type: str,  # noqa: A002  the wire's word
    task: str,
    *,
    config: TriggerConfig | None,
    external_id: str | None,
    tags: Iterable[str],
    metadata: dict[str, Any] | None,
    expires_at: datetime | None,
) -> bytes:
    """Return what POST /api/v1/sessions is told."""
    told = msgspec.to_builtins(config or TriggerConfig())
    told.setdefault("basePayload", {})
    if expires_at is not None and expires_at.tzinfo is None:
        raise ValueError(f"expires_at needs a time zone, got {expires_at!r}")

    return msgspec.json.encode(
        _Start(
            type=type,
            task_identifier=task,
            trigger_config=told,
            external_id=external_id,
            tags=tuple(tags),
            metadata=metadata,
            expires_at=expires_at,
        )
    )


def update_body(
    tags: Iterable[str] | msgspec.UnsetType, metadata: dict[str, Any] | msgspec.UnsetType | None
) -> bytes:
    """Return what PATCH is told; what is unset stays."""
    told = msgspec.UNSET if isinstance(tags, msgspec.UnsetType) else tuple(tags)

    return msgspec.json.encode(_Update(tags=told, metadata=metadata))


def list_query(  # one parameter for each filter
    *,
    after: str | None,
    page_size: int,
    type: str | None,  # noqa: A002
    tags: Iterable[str],
    task: str | None,
    external_id: str | None,
    status: SessionStatus | None,
    created_from: datetime | None,
    created_to: datetime | None,
) -> str:
    """Return the query of GET /api/v1/sessions."""
    told = {
        "page[size]": str(page_size),
        "page[after]": after,
        "filter[type]": type,
        "filter[tags]": ",".join(tags) or None,
        "filter[taskIdentifier]": task,
        "filter[externalId]": external_id,
        "filter[status]": status,
        "filter[createdAt][from]": _milliseconds(created_from),
        "filter[createdAt][to]": _milliseconds(created_to),
    }

    return urlencode({name: value for name, value in told.items() if value is not None})


def _milliseconds(moment: datetime | None) -> str | None:
    return None if moment is None else str(round(moment.timestamp() * 1000))
