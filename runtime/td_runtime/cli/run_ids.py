"""Which runs are meant: whole ids, or beginnings of ids that the run store completes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from td_runtime.config import Config
from td_runtime.control import ControlRefusedError
from td_runtime.data_dir import DataDir
from td_runtime.errors import TdRuntimeError, UsageError
from td_runtime.units import format_duration

if TYPE_CHECKING:
    from td_runtime.store import RunReader

__all__ = ["complete_id", "complete_ids", "explained", "unknown_run"]

_ID_LENGTH: Final = len("run_06h0h9v31czypsrrbz3w8jf7j")
_PREFIX: Final = "run_"
_SHORTEST: Final = len(_PREFIX) + 4
"""A shorter beginning may be one run's today and another's tomorrow."""
_SHOWN: Final = 5


def complete_ids(config: Config, texts: list[str]) -> list[str]:
    """Return the ids of the runs that *texts* name.

    A whole id is taken as it is: the supervisor knows best whether there is such a run.

    Raises:
        TdRuntimeError: A beginning that no run's id has.
        UsageError: A beginning that is too short, or that the ids of several runs have.
    """
    if all(map(_is_whole, texts)):
        return texts
    from td_runtime.cli.reading import read_store

    async def read(reader: "RunReader") -> list[str]:
        return [
            text if _is_whole(text) else await complete_id(reader, config, text) for text in texts
        ]

    return read_store(config, read)


async def complete_id(reader: "RunReader", config: Config, text: str) -> str:
    """Return the one id of a run that begins with *text*; raises as :func:`complete_ids`."""
    if len(text) < _SHORTEST and _PREFIX.startswith(text[: len(_PREFIX)]):
        raise UsageError(
            f"{text!r} is too short for the beginning of a run's id",
            advice=f"Give at least {_SHORTEST} characters of it.",
        )
    found = await reader.ids_beginning_with(text, limit=_SHOWN + 1)
    if not found:
        raise unknown_run(config, text)
    if len(found) > 1:
        more = ", …" if len(found) > _SHOWN else ""
        raise UsageError(
            f"several runs begin with {text!r}: {', '.join(found[:_SHOWN])}{more}",
            advice="Give more characters of the one you mean.",
        )

    return found[0]


def unknown_run(config: Config, *texts: str) -> TdRuntimeError:
    """Return the error for runs that are not there, with what to do about it."""
    store = config.store

    return TdRuntimeError(
        f"there is no run {', '.join(map(repr, texts))}",
        where=str(DataDir(config.runtime.data_dir).run_store),
        advice="`td-runtime runs list` shows all; finished ones are deleted after "
        f"{format_duration(store.retention_age)} (store.retention_age) or when there are more "
        f"than {store.retention_count:,} (store.retention_count).",
    )


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Give a supervisor's refusal inside the place and the advice that only the caller knows."""
    try:
        yield
    except ControlRefusedError as error:
        if error.code == "unknown_run":
            known = unknown_run(config, "")
            error.where, error.advice = known.where, known.advice
        error.where = error.where or str(config.path)
        raise


def _is_whole(text: str) -> bool:
    return len(text) == _ID_LENGTH
