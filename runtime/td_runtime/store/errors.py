"""What a run store refuses, beside the `StoreError` of a database that fails.

::

    td_runtime.errors.TdRuntimeError
    └── RunNotFoundError
"""

from __future__ import annotations

from td_runtime.errors import TdRuntimeError

__all__ = ["RunNotFoundError"]


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
