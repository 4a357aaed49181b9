"""What a task author imports.

Example::

    from td_worker import context, streams, tasks

    async def answer(payload):
        async with streams.writer("tokens") as writer:
            async for token in ask_model(payload):
                await writer.write(token)

Plain ``def`` tasks import the same names from :mod:`td_worker.sync`.
"""

from typing import TYPE_CHECKING

# `from td_worker import streams` imports that module then, and not here: the command line needs
# messages of this package, and neither its HTTP clients nor its errors.
if TYPE_CHECKING:
    from td_worker import chat, context, sessions, streams, tasks
    from td_worker.errors import (
        AbortTaskRunError,
        ChatChunkTooLargeError,
        InputTimeoutError,
        NotInTaskError,
        SessionClosedError,
        SessionIdError,
        StreamError,
        StreamKeyError,
        StreamWriteError,
        SubtaskUnwrapError,
        TdWorkerError,
        TriggerRefusedError,
        WaitpointTimeoutError,
    )

__all__ = [
    "AbortTaskRunError",
    "ChatChunkTooLargeError",
    "InputTimeoutError",
    "NotInTaskError",
    "SessionClosedError",
    "SessionIdError",
    "StreamError",
    "StreamKeyError",
    "StreamWriteError",
    "SubtaskUnwrapError",
    "TdWorkerError",
    "TriggerRefusedError",
    "WaitpointTimeoutError",
    "chat",
    "context",
    "sessions",
    "streams",
    "tasks",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if not (name in __all__ and name.endswith("Error")):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from td_worker import errors

        return getattr(errors, name)
