"""What clients send about sessions, and what they get."""

import datetime as dt
from typing import Annotated, Any, Final

import msgspec

from td_runtime.gateway.platform.sessions import ID_PREFIX, Session, new_session_id, now_ms

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Tag = Annotated[str, msgspec.Meta(max_length=128)]
ExternalId = Annotated[str, msgspec.Meta(min_length=1)]

EXTERNAL_ID_CHARS_MAX: Final = 256


class TriggerConfig(msgspec.Struct, rename="camel", omit_defaults=True):
    """How the runs of a session are started. What td-runtime has no use for it keeps as it is."""

    base_payload: dict[str, Any]
    machine: str | None = None
    queue: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    concurrency: Any = None
    concurrency_key: str | None = None
    tags: Annotated[list[Tag], msgspec.Meta(max_length=10)] | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] | None = None
    max_duration: Annotated[int, msgspec.Meta(ge=1)] | None = None
    lock_to_version: str | None = None
    external_deployment_id: str | None = None
    region: str | None = None
    idle_timeout_in_seconds: Annotated[int, msgspec.Meta(ge=1, le=3600)] | None = None
    ttl: str | int | None = None


class CreateSession(msgspec.Struct, rename="camel"):
    """The body of POST sessions."""

    type: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    task_identifier: Name
    trigger_config: TriggerConfig
    external_id: str | None = None
    tags: Annotated[list[Tag], msgspec.Meta(max_length=10)] = []
    metadata: dict[str, Any] | None = None
    expires_at: str | int | float | None = None

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if self.external_id is not None:
            self.external_id = clean_external_id(self.external_id)
        if self.expires_at is not None:
            self.expires_at = parse_date(self.expires_at)

    def to_session(self) -> Session:
        """A session as this asks for it."""
        now = now_ms()
        config: dict[str, Any] = msgspec.to_builtins(self.trigger_config)
        assert not isinstance(self.expires_at, str)  # noqa: S101  parsed above

        return Session(
            id=new_session_id(),
            external_id=self.external_id,
            type=self.type,
            task_identifier=self.task_identifier,
            trigger_config=config,
            tags=self.tags,
            metadata=self.metadata,
            expires_at=None if self.expires_at is None else int(self.expires_at),
            created_at=now,
            updated_at=now,
        )


class UpdateSession(msgspec.Struct, rename="camel"):
    """The body of PATCH sessions; what is absent stays."""

    tags: Annotated[list[Tag], msgspec.Meta(max_length=10)] | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    external_id: str | msgspec.UnsetType | None = msgspec.UNSET

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if isinstance(self.external_id, str):
            self.external_id = clean_external_id(self.external_id)


class CloseSession(msgspec.Struct, rename="camel"):
    """The body of POST close."""

    reason: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class HandOver(msgspec.Struct, rename="camel"):
    """The body of POST end-and-continue."""

    calling_run_id: str
    reason: Annotated[str, msgspec.Meta(max_length=64)]


class EndRun(HandOver, rename="camel"):
    """The body of POST end."""

    cursor: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """The number of the last record of ``in`` that the run has dealt with."""


class SessionItem(msgspec.Struct, rename="camel"):
    """A session as clients see it."""

    id: str
    external_id: str | None
    type: str
    task_identifier: str
    trigger_config: dict[str, Any]
    current_run_id: str | None
    tags: list[str]
    metadata: dict[str, Any] | None
    closed_at: str | None
    closed_reason: str | None
    expires_at: str | None
    created_at: str
    updated_at: str


class CreatedSession(SessionItem, rename="camel"):
    """The answer to POST sessions."""

    run_id: str
    public_access_token: str
    is_cached: bool


def show(session: Session) -> SessionItem:
    """A session for a client."""
    return SessionItem(**_fields(session))


def show_created(session: Session, *, token: str, is_cached: bool) -> CreatedSession:
    """A session for the client that started it."""
    return CreatedSession(
        **_fields(session),
        run_id=session.current_run_id or "",
        public_access_token=token,
        is_cached=is_cached,
    )


def clean_external_id(text: str) -> str:
    """An external id without the blanks around it.

    Raises:
        ValueError: It may not be one.
    """
    text = text.strip()
    if not 1 <= len(text) <= EXTERNAL_ID_CHARS_MAX:
        raise ValueError(f"externalId must have 1 to {EXTERNAL_ID_CHARS_MAX} characters")
    if text.startswith(ID_PREFIX):
        raise ValueError(
            f"externalId cannot start with '{ID_PREFIX}' (reserved prefix for internal friendlyIds)"
        )

    return text


def parse_date(value: str | float) -> int:
    """Milliseconds since the epoch, from those or from ISO 8601.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(value, str):
        return int(value)
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("Invalid date") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)

    return int(moment.timestamp() * 1000)


def show_date(ms: int | None) -> str | None:
    """A time as JavaScript writes it."""
    if ms is None:
        return None
    moment = dt.datetime.fromtimestamp(ms / 1000, dt.UTC)

    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(session: Session) -> dict[str, Any]:
    values = msgspec.structs.asdict(session)
    del values["current_run_version"]
    for name in ("closed_at", "expires_at", "created_at", "updated_at"):
        values[name] = show_date(values[name])

    return values
