"""What the service manager hears of us: systemd's notification protocol, sd_notify(3).

One datagram a state, to the socket that `NOTIFY_SOCKET` names. Without one nothing is sent: a
supervisor in a terminal has nobody to tell. It never raises: a service manager that does not listen
is no reason to stop the runs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

__all__ = ["ServiceManager"]


class ServiceManager:
    """The service manager that started this process, if one did.

    Attributes:
        watchdog: Seconds after which it counts this process as hung when it has heard no
            :meth:`alive`; None when it does not watch.
    """

    def __init__(self, address: str | None = None, *, watchdog: float | None = None) -> None:
        self._address = address
        self.watchdog = watchdog if address else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """Take the variables out of *environ*: what task code starts must not speak for us."""
        address = environ.pop("NOTIFY_SOCKET", None)
        period = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", str(os.getpid()))
        is_watched = period.isdecimal() and int(period) > 0 and watched == str(os.getpid())

        return cls(address, watchdog=int(period) / 1e6 if is_watched else None)

    def ready(self, status: str) -> None:
        """Runs are taken; also the end of a reload."""
        self._send("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """The configuration is read anew; :meth:`ready` follows."""
        # Type=notify-reload wants the time, to tell this reload from one before it.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=Reloading")

    def stopping(self) -> None:
        """The drain has begun."""
        self._send("STOPPING=1", "STATUS=Draining")

    def alive(self) -> None:
        """The loop turns; to be said twice in every :attr:`watchdog`."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A name that begins with @ is in the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), address)
