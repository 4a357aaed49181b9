"""The data folder: what lies where in it, and who may be in it at once.

::

    secret            the API key of the embedded control plane, made once (0600)
    runs.db           the run store; the supervisor is its only writer
    platform.db       the embedded stream store; the gateway is its only writer
    uploads/          payloads on their way; the gateway is their only writer
    port              the gateway's port, chosen once
    control.sock      the control socket (0600)
    supervisor.lock   held by the supervisor that owns the folder
    workers.lock      held shared by every worker: a new supervisor waits for the last one (R3)
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from td_runtime.errors import AlreadyRunningError, StoreError
from td_runtime.secret import Secret

__all__ = ["DataDir"]


class DataDir:
    """The paths below one data folder. Making one touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secret_file = path / "secret"
        self.run_store = path / "runs.db"
        self.platform_store = path / "platform.db"
        self.port_file = path / "port"
        self.control_socket = path / "control.sock"
        self.supervisor_lock = path / "supervisor.lock"
        self.workers_lock = path / "workers.lock"

    def prepare(self) -> None:
        """Make the folder with mode 0700, or check that it is ours alone.

        Raises:
            StoreError: It cannot be made, belongs to another user, or is open to others.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the data folder cannot be made: {error.strerror}",
                where=str(self.path),
                advice="Name another folder in [runtime] data_dir.",
            ) from error
        self.check()

    def check(self) -> None:
        """Check that the folder is ours alone, if there is one.

        Raises:
            StoreError: It belongs to another user, is open to others, cannot be written, or is no
                folder.
        """
        try:
            with self._usable():
                found = self.path.stat()
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(found.st_mode):
            raise StoreError(
                "the data folder is a file",
                where=str(self.path),
                advice="Name another folder in [runtime] data_dir.",
            )
        if found.st_uid != os.geteuid():
            raise StoreError(
                f"the data folder belongs to user {found.st_uid}, not to {os.geteuid()}",
                where=str(self.path),
                advice="Name a folder of your own in [runtime] data_dir.",
            )
        if found.st_mode & 0o077:
            raise StoreError(
                f"the data folder is open to others (mode {found.st_mode & 0o777:04o})",
                where=str(self.path),
                advice=f"Run: chmod 700 {self.path}",
            )
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise StoreError(
                "the data folder cannot be written",
                where=str(self.path),
                advice=f"Run: chmod 700 {self.path}; or name one on a disk that may be written.",
            )

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder for the block: at most one supervisor does.

        The kernel frees the lock when the process dies, however it dies. Forked children close
        the descriptor, or they would hold the lock after the supervisor is gone.

        Raises:
            AlreadyRunningError: Another supervisor owns it.
        """
        fd = self._open_lock(self.supervisor_lock)
        try:
            self._take(fd)
            yield
        finally:
            os.close(fd)

    def _take(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(fd, 32, 0).decode().strip() or "unknown"
            raise AlreadyRunningError(
                f"another supervisor (pid {pid}) holds the data folder",
                where=str(self.path),
                advice="Use it with `td-runtime trigger`, or stop it first.",
            ) from error
        with self._usable():
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())

    def wait_for_workers(self) -> None:
        """Return when no worker of an earlier supervisor lives (R3).

        They end by themselves within 2 s of their supervisor's death; the wait is the kernel's.
        """
        fd = self._open_lock(self.workers_lock)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        finally:
            os.close(fd)

    def secret(self) -> Secret:
        """Return the API key of the embedded control plane; the first call makes it.

        Raises:
            StoreError: It can be neither read nor written, or the file is empty.
        """
        with contextlib.suppress(FileNotFoundError):
            return self.read_secret()
        with self._usable():
            self._make_secret()

        return self.read_secret()

    def _make_secret(self) -> None:
        # Written beside and linked into place: a process killed in between leaves no half key.
        draft = self.path / f"secret.{os.getpid()}"
        # In a container the process that was killed there had our id.
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            import secrets  # once in a folder's life; it brings OpenSSL along

            file.write(f"tr_prod_{secrets.token_urlsafe(24)}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, self.secret_file)
        draft.unlink()

    def read_secret(self) -> Secret:
        """Return the API key.

        Raises:
            FileNotFoundError: No supervisor has made one yet.
            StoreError: It cannot be read, or the file is empty.
        """
        with self._usable():
            text = self.secret_file.read_text(errors="replace").strip()
        if not text:
            raise StoreError(
                "the API key is empty",
                where=str(self.secret_file),
                advice="Remove the file: the next `td-runtime start` makes a new key.",
            )

        return Secret(text)

    def port(self, host: str, wanted: int) -> int:
        """Return the gateway's port: *wanted*, or one chosen once for this folder and kept.

        Raises:
            OSError: Nobody can listen at *host* on this machine.
            StoreError: The choice cannot be written down.
        """
        kept = wanted or self.read_port()
        # A wanted port may be taken: the gateway before this one is about to give it back.
        is_free = kept is not None and _is_free(host, kept)
        chosen = kept if kept and (wanted or is_free) else _free_port(host)
        with self._usable():
            self.port_file.write_text(f"{chosen}\n")

        return chosen

    def read_port(self) -> int | None:
        """Return the port that was chosen, None before the first start."""
        try:
            with self._usable():
                return int(self.port_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    @contextlib.contextmanager
    def control_address(self) -> Iterator[str]:
        """Yield an address of the control socket that fits into ``sockaddr_un``.

        A path has 107 bytes at most; a longer one is reached through a descriptor of its folder.
        """
        if len(os.fsencode(self.control_socket)) <= 107:
            yield str(self.control_socket)
            return
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}/{self.control_socket.name}"
        finally:
            os.close(fd)

    def _open_lock(self, path: Path) -> int:
        with self._usable():
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Tell what the system refuses in the block as a :class:`StoreError`.

        A file that is not there yet stays a `FileNotFoundError`.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(
                f"the data folder cannot be used: {error.strerror}",
                where=str(error.filename or self.path),
                advice="[runtime] data_dir must be a folder of your own on a disk with room.",
            ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        # As the server will: connections of an earlier gateway in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            # Anything else, such as a name that is no address of this machine, no port cures.
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            return False

    return True


def _free_port(host: str) -> int:
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]

    return port
