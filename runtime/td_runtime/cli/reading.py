"""Reading the run store from a command: beside a supervisor, or without one; never writing."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from td_runtime.config import Config
from td_runtime.data_dir import DataDir
from td_runtime.start_imports import imports_without_extras

with imports_without_extras():
    import asyncio

    from td_runtime.store import RunReader, open_readonly

__all__ = ["has_store", "read_store"]

T = TypeVar("T")


def has_store(config: Config) -> bool:
    """Whether there is a run store, or may be: td-runtime was started here once."""
    try:
        return DataDir(config.runtime.data_dir).run_store.is_file()
    except PermissionError:  # whoever reads it is told
        return True


def read_store(config: Config, read: Callable[[RunReader], Awaitable[T]]) -> T:
    """Open the run store, let *read* ask it, and close it.

    Raises:
        StoreError: There is none yet, or it cannot be read.
    """

    async def opened() -> T:
        async with open_readonly(DataDir(config.runtime.data_dir).run_store) as reader:
            return await read(reader)

    return asyncio.run(opened())
