"""Many runs at once: payloads from JSON lines, accepted in batches that limits allow."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from td_runtime.cli.options import excerpt
from td_runtime.control import Accepted, ControlClient, ControlRefusedError, TriggerRuns
from td_runtime.errors import UsageError
from td_worker.messages import MAX_CONTROL_FRAME, TriggerItem

__all__ = ["read_payloads", "trigger_in_batches"]

_BYTES_AT_ONCE: Final = MAX_CONTROL_FRAME // 2


def read_payloads(source: str) -> list[bytes]:
    """Return the payload of each line of a file, or of standard input for "-"; empty ones are none.

    Raises:
        UsageError: It cannot be read, or a line is not JSON; then nothing has been triggered.
    """
    lines = enumerate(_read(source).splitlines(), 1)
    payloads = [_payload(line, number, source) for number, line in lines if line.strip()]
    if not payloads:
        raise UsageError("the batch has no lines", where=f"--batch {source}")

    return payloads


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read() if sys.stdin is not None else b""
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise UsageError(
            f"the batch cannot be read: {error.strerror}", where=f"--batch {source}"
        ) from error


def _payload(line: bytes, number: int, source: str) -> bytes:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"line {number} is not JSON: {error}; got {excerpt(line)}",
            where=f"--batch {source}",
            advice="Each line is the payload of one run. No run was triggered.",
        ) from error

    return line


def trigger_in_batches(
    client: ControlClient, items: Sequence[TriggerItem], *, limit: int
) -> list[str]:
    """Have runs accepted, so many at once as the limit and a message allow; returns their ids.

    Each batch is accepted whole or not at all.

    Raises:
        ControlRefusedError: One was refused; says how many runs were accepted before.
    """
    run_ids: list[str] = []
    for batch in _batches(items, limit):
        try:
            run_ids += client.ask(TriggerRuns(items=batch), Accepted).run_ids
        except ControlRefusedError as error:
            if run_ids:
                error.advice = (
                    f"The first {len(run_ids)} lines are accepted ({run_ids[0]} to {run_ids[-1]}); "
                    f"go on with line {len(run_ids) + 1} (empty ones not counted)."
                )
            elif error.advice is None:
                error.advice = "No run was triggered."
            raise

    return run_ids


def _batches(items: Sequence[TriggerItem], limit: int) -> Iterator[list[TriggerItem]]:
    batch: list[TriggerItem] = []
    size = 0
    for item in items:
        more = len(msgspec.msgpack.encode(item))
        if batch and (len(batch) == limit or size + more > _BYTES_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    yield batch
