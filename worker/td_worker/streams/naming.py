"""What a stream is called: keys, targets and the slot that follows from them."""

from __future__ import annotations

from td_sharedcache.slot import Slot
from td_worker.context import Execution, RunInfo
from td_worker.errors import NotInTaskError, StreamKeyError

DEFAULT_KEY = "default"


def resolve_target(target: str | None, run: RunInfo | None) -> str:
    """
    Return the id of the run whose stream is meant.

    Args:
        target: `self` or None (the run, or the one it was triggered to stream to), `parent`, `root`
            (both fall back to the run itself), or a run id.
        run: The current run, None outside a task.

    Raises:
        NotInTaskError: The target needs a run, and there is none.
    """
    if target not in {None, "self", "parent", "root"}:
        return check_run_id(str(target))
    if run is None:
        raise NotInTaskError(
            "the target run of a realtime stream (pass `target=<run id>` outside of a task)"
        )
    if target == "parent":
        return run.parent_id or run.id
    if target == "root":
        return run.root_id or run.id

    return run.stream_run_id or run.id


def run_slot(target: str | None, key: str, execution: Execution | None) -> Slot:
    """Return the slot of stream `key` of the run that `target` means."""
    run = execution.run if execution is not None else None

    return Slot.run(resolve_target(target, run), check_key(key))


def check_key(key: str) -> str:
    """
    Return `key` when it can name a run's stream.

    Raises:
        StreamKeyError: It is no string, empty, a path, or has a lone surrogate.
    """
    if not isinstance(key, str):
        raise StreamKeyError(f"a stream key is a string, got {type(key).__name__}: {key!r:.80}")

    return _check_segment("stream key", key)


def check_run_id(run_id: str) -> str:
    """
    Return `run_id` when it can be one.

    Raises:
        StreamKeyError: It is empty, a path, or has a lone surrogate.
    """
    return _check_segment("run id", run_id)


def _check_segment(what: str, text: str) -> str:
    # One segment of the control plane's URL and of the stream's name: a slash, even encoded, would
    # name another stream there, and dots are folded away by HTTP clients and proxies.
    if not text or "/" in text or text in {".", ".."}:
        raise StreamKeyError(
            f"a {what} must not be empty, '.', '..' or contain a slash, got {text[:80]!r}; "
            "use another separator, such as ':' or '.'"
        )
    if not _is_unicode(text):
        raise StreamKeyError(f"a {what} must be valid Unicode, got {text[:80]!r}")

    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False

    return True
