"""
What goes wrong in td_worker: one tree, in reading order.

- TdWorkerError
  - NotInTaskError                 a call that needs a task was made outside of one
  - NotInChatError                 a chat call was made by a task that serves no chat
  - ChatInputError                 a message of a chat client that cannot be understood
  - BlockingCallError              a plain `def` call was made on an event loop
  - TaskLoadError                  an entrypoint that cannot be imported or called
  - AbortTaskRunError              raised by a task to fail its run without another attempt
  - TaskPayloadError               a payload that the task's type hint refuses
  - TaskOutputError                an output that JSON cannot express
  - OutputTooLargeError            an output over the limit
  - TaskMiddlewareError            middleware that did not call what is inside it
  - StreamLossError                a run lost stream records and its task calls that a failure
  - TriggerRefusedError            the supervisor did not accept runs
  - SubtaskUnwrapError             `unwrap()` of a child run that did not complete
  - StreamError                    everything about streams
    - StreamKeyError               a stream key or run id that cannot name a stream
    - StreamClosedError            a write to a writer that is closed, aborted or failed
    - ChunkNotEncodableError       a chunk that JSON cannot express
    - ChatChunkTooLargeError       a chunk over the per-record cap
    - ChatBufferFullError          a chat chunk that found both its buffers full
    - StreamWriteError             records that were given up: says how many were acked
    - StreamReadError              a read that cannot go on
    - SessionReadError             a read of a session's channel that cannot go on
    - SessionIdError               an id or a channel's name that cannot name a session's channel
  - InputTimeoutError              no input came in time, while the run stayed in its place
  - WaitpointTimeoutError          no input came in time, while the run had freed its place
  - StreamStoreError               what the stream store (S2 or its stand-in) answered
    - StreamStoreAuthError         401, 403: the credential is no good any more
    - StreamStoreBusyError         408, 429, 5xx: later it may work
    - StreamStoreUnreachableError  no answer at all
    - StreamStoreRefusedError      any other refusal: trying again is no use
  - ControlPlaneError              what the control plane answered; a `MintError` of td_sharedcache
    - ControlPlaneUnreachableError no answer at all
    - ControlPlaneBusyError        408, 409, 429, 5xx: later it may work
    - ControlPlaneRefusedError     any other refusal: says what to do
      - SessionClosedError         the session is closed or expired: nothing more goes in
    - StreamVersionError           the run's streams are of version v1, which S2 does not hold

Every error keeps its facts as attributes, its foreign cause as `__cause__`, and survives pickling.
No error ever carries a token or a key.
"""

from __future__ import annotations

from typing import Any

from td_sharedcache.errors import MintError


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


class NotInChatError(TdWorkerError):
    """
    A chat call was made by a task that serves no chat.

    Attributes:
        call: What was called.
    """

    def __init__(self, call: str) -> None:
        self.call = call
        super().__init__(
            f"{call} belongs to a chat, and this task serves none: make it a `@chat.agent`, or "
            "wrap the code into `async with chat.bind(chat_id)`"
        )


class ChatInputError(TdWorkerError, ValueError):
    """
    A message of a chat client that cannot be understood; its turn fails.

    Attributes:
        chat_id: The chat.
        reason: What is wrong with it, in one sentence.
    """

    def __init__(self, chat_id: str, reason: str) -> None:
        self.chat_id = chat_id
        self.reason = reason
        super().__init__(f"chat {chat_id!r} got a message that cannot be understood: {reason}")


class BlockingCallError(TdWorkerError):
    """
    A blocking call was made on an event loop, where it would stop every other task.

    Attributes:
        call: What was called.
    """

    def __init__(self, call: str) -> None:
        self.call = call
        super().__init__(
            f"{call} of td_worker.sync blocks and was called on an event loop: in an `async def` "
            f"task import from td_worker and write `await {call}(…)`"
        )


# --- tasks -------------------------------------------------------------------------------------


class TaskLoadError(TdWorkerError, ImportError):
    """
    An entrypoint cannot be imported or called.

    Attributes:
        task: The task's id.
        entrypoint: `module:function` as configured.
        reason: Why, in one sentence.
    """

    def __init__(self, task: str, entrypoint: str, reason: str) -> None:
        self.task = task
        self.entrypoint = entrypoint
        self.reason = reason
        super().__init__(f"task {task!r} ({entrypoint}): {reason}")


class AbortTaskRunError(TdWorkerError):
    """Raise it in a task to fail the run at once, without another attempt (upstream's name)."""


class TaskPayloadError(TdWorkerError):
    """
    A payload that the task's type hint refuses; another attempt is no use.

    Attributes:
        task: The task's id.
        reason: Which key has what, and what was expected.
    """

    def __init__(self, task: str, reason: str, payload: bytes) -> None:
        self.task = task
        self.reason = reason
        shown = payload[:200].decode(errors="replace") + ("…" if len(payload) > 200 else "")
        super().__init__(f"task {task!r} cannot take this payload: {reason}; got {shown}")


class TaskOutputError(TdWorkerError):
    """
    An output that JSON cannot express; another attempt is no use.

    Attributes:
        task: The task's id.
    """

    def __init__(self, task: str, reason: str) -> None:
        self.task = task
        super().__init__(f"the output of task {task!r} cannot be recorded: {reason}")


class OutputTooLargeError(TdWorkerError):
    """
    An output over the limit; another attempt is no use.

    Attributes:
        task: The task's id.
        size: Bytes of the output as JSON.
        limit: The limit in bytes.
    """

    def __init__(self, task: str, size: int, limit: int) -> None:
        self.task = task
        self.size = size
        self.limit = limit
        super().__init__(
            f"the output of task {task!r} is {size} bytes; limits.output = {limit}: "
            "store it elsewhere and return where"
        )


class TaskMiddlewareError(TdWorkerError):
    """
    Middleware returned and had not called `call_next()`: the task was not executed.

    Attributes:
        hook: Where the middleware is.
    """

    def __init__(self, hook: str) -> None:
        self.hook = hook
        super().__init__(f"middleware {hook} returned without `await call_next()`")


class StreamLossError(TdWorkerError):
    """
    The run lost stream records, and its task has `fail_on_stream_loss`.

    Attributes:
        records: How many.
    """

    def __init__(self, records: int) -> None:
        self.records = records
        super().__init__(f"{records} records that the run had streamed could not be stored")


class TriggerRefusedError(TdWorkerError):
    """The supervisor did not accept the runs; the message is its own, nothing was started."""


class SubtaskUnwrapError(TdWorkerError):
    """
    `unwrap()` of a child run that did not complete (upstream's name).

    Attributes:
        run_id: The child run.
        task: Its task.
        status: How it ended.
        error: Its error, where it has one.
    """

    def __init__(self, run_id: str, task: str, status: str, error: Any) -> None:
        self.run_id = run_id
        self.task = task
        self.status = status
        self.error = error
        why = f": {error.type}: {error.message}" if error is not None else ""
        super().__init__(f"run {run_id} of task {task!r} is {status}{why}")


# --- streams -----------------------------------------------------------------------------------


class StreamError(TdWorkerError):
    """Base of everything that goes wrong with a stream."""


class StreamKeyError(StreamError, ValueError):
    """A stream key or run id that cannot name a stream."""


class StreamClosedError(StreamError):
    """This writer takes nothing any more: open a new one."""


class ChunkNotEncodableError(StreamError, TypeError):
    """A chunk that JSON cannot express: write plain data, dataclasses or pydantic models."""


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


class ChatBufferFullError(StreamError):
    """
    A chunk of `chat.response.write` was refused: more is written than the stream store takes.

    Attributes:
        chat_id: The chat.
        waiting: Bytes that wait for room in the buffer already.
    """

    def __init__(self, chat_id: str, waiting: int) -> None:
        self.chat_id = chat_id
        self.waiting = waiting
        super().__init__(
            f"chat {chat_id!r}: the buffer is full and {waiting} bytes wait for room in it; write "
            "`await chat.response.write(chunk)`, which waits while it is full"
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


class SessionReadError(StreamError):
    """
    A session's channel cannot be read (on): the cause says why.

    Attributes:
        slot: The session, channel and direction.
        status: The HTTP status, when there was an answer.
    """

    def __init__(self, slot: str, *, status: int | None, reason: str) -> None:
        self.slot = slot
        self.status = status
        super().__init__(f"{slot} cannot be read: {reason}")


class SessionIdError(StreamError, ValueError):
    """An id or a name that cannot name a session or a channel of one."""


# --- input -------------------------------------------------------------------------------------


class InputTimeoutError(TdWorkerError, TimeoutError):
    """
    No input came in time; the official SDK's `InputStreamTimeoutError`.

    Attributes:
        source: What was waited for.
        timeout: Seconds.
    """

    def __init__(self, source: str, timeout: float) -> None:
        self.source = source
        self.timeout = timeout
        super().__init__(f"no input came from {source} within {timeout:g} s")


class WaitpointTimeoutError(TdWorkerError, TimeoutError):
    """No input came in time, while the run had freed its place (upstream's name)."""


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


# --- the control plane -------------------------------------------------------------------------


class ControlPlaneError(MintError, TdWorkerError):
    """
    Base of what a call to the control plane can meet.

    Attributes:
        status: The HTTP status, None without an answer.
        retryable: Whether the same call may succeed later.
        retry_after: Seconds the control plane asked to wait, None when it did not say.
    """


class ControlPlaneUnreachableError(ControlPlaneError):
    """No answer: refused, reset, timed out, or the name did not resolve."""


class ControlPlaneBusyError(ControlPlaneError):
    """The control plane cannot do it now (408, 409, 429, 5xx)."""


class ControlPlaneRefusedError(ControlPlaneError):
    """The control plane refuses this for good: the message says what to do."""


class SessionClosedError(ControlPlaneRefusedError):
    """The session is closed or expired, for good: nothing more can be written to it."""


class StreamVersionError(ControlPlaneError):
    """The run's streams are of version v1, which is not stored in S2."""
