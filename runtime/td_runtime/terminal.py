"""The terminal that this process was started in, and whether that has been closed.

SIGHUP means two things: the terminal is gone, or somebody asks for a reload. The kernel tells
which: a process whose terminal was closed has none any more.
"""

import os
import signal

__all__ = ["Terminal"]


class Terminal:
    """Whether there was a controlling terminal when this was made.

    Under a service manager, after `setsid` and in most containers there is none. `nohup`, which
    has SIGHUP ignored, says that a closed one is to be no reason to stop.
    """

    def __init__(self) -> None:
        ignores = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._counts = _has_terminal() and not ignores

    def is_closed(self) -> bool:
        """Whether there was one that counts, and it is gone."""
        return self._counts and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False

    return True
