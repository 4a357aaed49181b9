"""td-runtime: starts worker processes, keeps them alive, tells what happens.

Programs of your own trigger runs by :class:`Client` or :class:`AsyncClient`.
"""

from typing import TYPE_CHECKING

from td_worker.version import VERSION

if TYPE_CHECKING:
    from td_runtime.async_client import AsyncClient
    from td_runtime.client import Client
    from td_runtime.client_calls import RunHandle
    from td_runtime.control import ControlRefusedError, NotRunningError
    from td_runtime.control_messages import RunDetails, RunItem

__all__ = [
    "AsyncClient",
    "Client",
    "ControlRefusedError",
    "NotRunningError",
    "RunDetails",
    "RunHandle",
    "RunItem",
    "__version__",
]

__version__ = VERSION
"""The version of this package."""

if not TYPE_CHECKING:
    _PLACES = {
        "AsyncClient": "async_client",
        "Client": "client",
        "ControlRefusedError": "control",
        "NotRunningError": "control",
        "RunDetails": "control_messages",
        "RunHandle": "client_calls",
        "RunItem": "control_messages",
    }

    def __getattr__(name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
