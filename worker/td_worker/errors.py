"""
What goes wrong in td_worker: one tree, in reading order.

- TdWorkerError
  - NotInTaskError                 a call that needs a task was made outside of one
  - StreamError                    everything about streams
    - StreamKeyError               a stream key or run id that cannot name a stream
    - StreamClosedError            a write to a writer that is closed, aborted or failed
    - ChunkNotEncodableError       a chunk that JSON cannot express
    - ChatChunkTooLargeError       a chunk over the per-record cap
    - StreamWriteError             records that were given up: says how many were acked
    - StreamReadError              a read that cannot go on
  - StreamStoreError               what the stream store (S2 or its stand-in) answered
    - StreamStoreAuthError         401, 403: the credential is no good any more
    - StreamStoreBusyError         408, 429, 5xx: later it may work
    - StreamStoreUnreachableError  no answer at all
    - StreamStoreRefusedError      any other refusal: trying again is no use

Every error keeps its facts as attributes, its foreign cause as `__cause__`, and survives pickling.
No error ever carries a token or a key.
"""

from __future__ import annotations

from typing import Any


class TdWorkerError(Exception):
    """Base of everything td_worker raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild without calling `__init__`, whose arguments differ from one error to the next."""
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(
    kind: type[TdWorkerError], args: tuple[Any, ...], facts: dict[str, Any]
) -> TdWorkerError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)

    return error


class NotInTaskError(TdWorkerError):
    """This can only be used while a task runs, in the task's own code."""

    def __init__(self, what: str = "the task context") -> None:
        super().__init__(
            f"{what} is only there while a task runs: call it from the task's function, not at "
            "import time, and start threads with `contextvars.copy_context().run`, since a bare "
            "thread does not inherit the context"
        )


# --- streams -----------------------------------------------------------------------------------


class StreamError(TdWorkerError):
    """Base of everything that goes wrong with a stream."""


class StreamKeyError(StreamError, ValueError):
    """A stream key or run id that cannot name a stream."""


class StreamClosedError(StreamError):
    """This writer takes nothing any more: open a new one."""


class ChunkNotEncodableError(StreamError, TypeError):
    """A chunk that JSON cannot express: write plain data, dataclasses, msgspec or pydantic models."""


class ChatChunkTooLargeError(StreamError):
    """
    A chunk whose envelope is over the cap of one record.

    The name is the official SDK's, which raises it for every stream, chat or not.

    Attributes:
        chunk_size: Bytes of the whole envelope in UTF-8.
        max_size: The cap in bytes.
        chunk_type: The chunk's `type`, else its `kind`, when that is a string.
    """

    def __init__(self, chunk_size: int, max_size: int, chunk_type: str | None = None) -> None:
        self.chunk_size = chunk_size
        self.max_size = max_size
        self.chunk_type = chunk_type
        of_type = f' of type "{chunk_type}"' if chunk_type else ""
        super().__init__(
            f"chat.agent chunk{of_type} is {chunk_size} bytes, over the realtime stream's "
            f"per-record cap of {max_size} bytes. Put oversized payloads into your own store and "
            "emit only an id or url. "
            "See https://trigger.dev/docs/ai-chat/patterns/large-payloads"
        )


class StreamWriteError(StreamError):
    """
    Records were accepted and then given up: the stream lacks them.

    Attributes:
        slot: The slot that was written to.
        acked: How many records of this writer are durable.
        unacked: How many of its accepted records were given up.
        reason: Why, in one sentence; the cause itself is `__cause__`.
    """

    def __init__(self, slot: str, *, acked: int, unacked: int, reason: str) -> None:
        self.slot = slot
        self.acked = acked
        self.unacked = unacked
        self.reason = reason
        super().__init__(
            f"stream {slot}: {acked} records acked, {unacked} not acked and given up: {reason}"
        )


class StreamReadError(StreamError):
    """
    A stream cannot be read (on): the cause says why.

    Attributes:
        run_id: Whose stream.
        key: Which stream.
        status: The HTTP status, when there was an answer.
    """

    def __init__(self, run_id: str, key: str, *, status: int | None, reason: str) -> None:
        self.run_id = run_id
        self.key = key
        self.status = status
        super().__init__(f"stream {key!r} of run {run_id!r} cannot be read: {reason}")


# --- the stream store --------------------------------------------------------------------------


class StreamStoreError(TdWorkerError):
    """
    Base of what an append to the stream store can meet.

    Attributes:
        status: The HTTP status, None without an answer.
        code: The store's own error code, when it gave one.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        self.status = status
        self.code = code
        super().__init__(message)


class StreamStoreAuthError(StreamStoreError):
    """The credential was refused (401, 403): mint another."""


class StreamStoreBusyError(StreamStoreError):
    """
    The store cannot take it now (408, 429, 5xx, a transaction conflict).

    Attributes:
        retry_after: Seconds the store asked to wait, None when it did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.retry_after = retry_after
        super().__init__(message, status=status, code=code)


class StreamStoreUnreachableError(StreamStoreError):
    """No answer: refused, reset, timed out, or the name did not resolve."""


class StreamStoreRefusedError(StreamStoreError):
    """The store refuses this for good: trying again is no use."""
