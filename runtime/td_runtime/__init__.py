"""td-runtime: starts worker processes, keeps them alive, tells what happens."""

from typing import TYPE_CHECKING

__all__ = ["__version__"]

__version__: str
"""The installed version."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        # Looked up by who asks: finding it costs more than all the rest of a light command.
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("td-runtime")
