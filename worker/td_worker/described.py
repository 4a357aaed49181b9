"""What is recorded of an exception of task code (R6), whatever that code has made of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from td_worker.messages import RunError
from td_worker.retry import is_retryable

__all__ = ["describe", "text_of"]


def describe(error: BaseException, limit: int, *, code: str | None = None) -> RunError:
    """Return *error* as it is recorded (R6), its texts in *limit* bytes each."""
    return RunError(
        type=_printable(type(error).__name__),
        message=_head(text_of(lambda: str(error)), limit),
        traceback=_tail(text_of(lambda: "".join(traceback.format_exception(error))), limit),
        retryable=is_retryable(error),
        code=code,
    )


def text_of(render: Callable[[], str]) -> str:
    """Return what *render* says of an exception of task code, whose ``__str__`` may fail, too."""
    try:
        return _printable(render())
    except BaseException as error:  # noqa: BLE001  the run must have its outcome
        return f"<it cannot be shown: {type(error).__name__}>"


def _printable(text: str) -> str:
    """Return *text* as UTF-8 can say it; a file name may hold lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _head(text: str, limit: int) -> str:
    """Return the beginning of *text* in *limit* bytes."""
    raw = text.encode()
    if len(raw) <= limit:
        return text

    return raw[:limit].decode(errors="ignore") + " [cut]"


def _tail(text: str, limit: int) -> str:
    """Return the end of *text*, where a traceback says what happened, in *limit* bytes."""
    raw = text.encode()
    if len(raw) <= limit:
        return text

    return "[cut] " + raw[-limit:].decode(errors="ignore")
