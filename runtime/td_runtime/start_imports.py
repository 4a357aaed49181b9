"""Imports for processes that stay, without what libraries load for things that nobody does there.

structlog and httpx load rich, pygments and click where these are installed, for tracebacks in
colour and a command line of their own; aiohttp reads the host's certificates for connections that
the embedded control plane never has. That is a quarter of a start, and 8 MiB.
"""

import contextlib
import gc
import ssl
import sys
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["imports_without_extras"]

_HIDDEN: Final = ("better_exceptions", "click", "rich")


@contextlib.contextmanager
def imports_without_extras(*, tls_is_likely: bool = False) -> Iterator[None]:
    """Have what is imported in the block go without its extras; for the main thread, before forks.

    What was imported stays so: in this process and what it forks, structlog has no tracebacks of
    rich's. rich itself can be imported after the block, as ever.

    Args:
        tls_is_likely: Whether certificates are read at once: those of a process that forks are
            its children's, too.
    """
    was_collecting = gc.isenabled()
    # Modules leave next to no garbage, and looking for it among them takes as long as a few.
    gc.disable()
    try:
        with _hidden(), contextlib.nullcontext() if tls_is_likely else _late_certificates():
            yield
    finally:
        # Or the first collection would look at all of it after all, as that before each fork.
        gc.freeze()
        if was_collecting:
            gc.enable()


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    """Have the imports of extras fail as where they are not installed."""
    absent = [name for name in _HIDDEN if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    # What the import system takes for "not to be found".
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def _late_certificates() -> Iterator[None]:
    """Have contexts made in the block read the host's certificates when they are first used."""

    def put_off(context: ssl.SSLContext) -> None:
        context.__class__ = _LateContext

    # In front of the method of the C class below, which does it at once.
    ssl.SSLContext.set_default_verify_paths = put_off  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths


class _LateContext(ssl.SSLContext):
    """A context that reads the host's certificates before its first connection."""

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Begin a connection of an event loop's."""
        self._read_certificates()

        return ssl.SSLContext.wrap_bio(self, *args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Begin a connection."""
        self._read_certificates()

        return ssl.SSLContext.wrap_socket(self, *args, **kwargs)

    def _read_certificates(self) -> None:
        self.set_default_verify_paths()
        # Last: a thread that uses it meanwhile reads them once more, and never goes without.
        self.__class__ = ssl.SSLContext  # type: ignore[assignment]
