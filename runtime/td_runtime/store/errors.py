"""What a run store refuses, beside the `StoreError` of a database that fails.

::

    td_runtime.errors.TdRuntimeError
    ├── RunNotFoundError
    ├── ParentCanceledError
    └── StoreError
        └── StoreFullError
"""

from __future__ import annotations

from td_runtime.errors import StoreError, TdRuntimeError

__all__ = ["ParentCanceledError", "RunNotFoundError", "StoreFullError"]


class RunNotFoundError(TdRuntimeError):
    """There is no run with that id.

    Args:
        run_id: The id asked for.
        where: The run store's file or address.
    """

    def __init__(self, run_id: str, *, where: str | None = None) -> None:
        super().__init__(
            f"there is no run {run_id!r}",
            where=where,
            advice="check the id and the data folder",
        )
        self.run_id = run_id


class ParentCanceledError(TdRuntimeError):
    """The run that asks for another one is being canceled together with its children.

    Args:
        run_id: The parent.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"run {run_id!r} is canceled with its children, and triggers no more of them",
            advice="trigger the run from somewhere else",
        )
        self.run_id = run_id


class StoreFullError(StoreError):
    """The disk under the run store is full: nothing new is taken until there is room."""
