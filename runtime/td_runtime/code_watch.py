"""The process behind ``start --reload``: has the supervisor reload when task code changes.

A process of its own, started by exec: what watches files has threads, and the supervisor, which
forks, must have one alone. It sends SIGHUP, and ends when the supervisor does, however that dies.

::

    python -m td_runtime.code_watch CONFIG PIDFD
"""

import importlib.util
import os
import select
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from td_runtime.config import Config, load_config
from td_runtime.control import ControlClient, GetStatus, NotRunningError, StatusView
from td_runtime.data_dir import DataDir
from td_runtime.errors import ConfigError, TdRuntimeError

if TYPE_CHECKING:
    from watchfiles import Change

__all__ = ["reloading_on_changes"]

_GATHER_MS: Final = 500
"""What an editor or a version control system writes within so long is one change."""
_QUIET_MS: Final = 50
_START_POLL_MS: Final = 100


@contextmanager
def reloading_on_changes(config: Config) -> Iterator[None]:
    """Have this process, which becomes the supervisor, sent SIGHUP when task code changes.

    Raises:
        TdRuntimeError: watchfiles is not installed.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise TdRuntimeError(
            "--reload needs watchfiles, which is not installed",
            where=sys.executable,
            advice="Install it with `pip install 'td-runtime[reload]'`.",
        )
    # Python takes a file of the same size and second for the one it has compiled before.
    sys.dont_write_bytecode = True
    pidfd = os.pidfd_open(os.getpid())
    try:
        # -P: modules that happen to lie in the working folder must not be taken for ours. A group
        # of its own: Ctrl-C is for the supervisor.
        watcher = subprocess.Popen(  # noqa: S603  our own module, our own interpreter
            [sys.executable, "-P", "-m", "td_runtime.code_watch", str(config.path), str(pidfd)],
            pass_fds=[pidfd],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            process_group=0,
        )
    finally:
        os.close(pidfd)
    try:
        yield
    finally:
        watcher.terminate()
        watcher.wait()


class _Supervisor:
    """The supervisor, as its descriptor names it: no other process is ever meant."""

    def __init__(self, config: Config, pidfd: int) -> None:
        self._data_dir = DataDir(config.runtime.data_dir)
        self._pidfd = pidfd
        self._poller = select.poll()
        self._poller.register(pidfd, select.POLLIN)

    def is_set(self) -> bool:
        """Whether it is gone; the name is what watchfiles asks."""
        return bool(self._poller.poll(0))

    def reload(self) -> None:
        """Have it reload once it has started: before, the signal would end it."""
        while self._state() == "starting":
            if self._poller.poll(_START_POLL_MS):
                return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGHUP)

    def _state(self) -> str:
        try:
            with ControlClient(self._data_dir, name="start --reload") as client:
                return client.ask(GetStatus(), StatusView).state
        except NotRunningError:
            return "starting"


def _watch(config: Config, supervisor: _Supervisor) -> Config:
    """Have it reload at every change; returns a newer config once that is to be watched."""
    from watchfiles import watch

    for changes in watch(
        *_folders(config),
        watch_filter=_filter(config),
        stop_event=supervisor,
        debounce=_GATHER_MS,
        step=_QUIET_MS,
        raise_interrupt=False,
    ):
        paths = {path for _, path in changes}
        names = ", ".join(sorted(os.path.relpath(path, config.folder) for path in paths))
        print(f"td-runtime: changed: {names}", file=sys.stderr, flush=True)
        supervisor.reload()
        if str(config.path) in paths:
            # The supervisor says what is wrong with a broken one, and keeps the old one as well.
            with suppress(ConfigError):
                return load_config(config.path)

    return config


def _filter(config: Config) -> "Callable[[Change, str], bool]":
    """Return what lets Python files and the config file pass, and nothing else."""
    from watchfiles import PythonFilter

    ours = [str(config.runtime.data_dir), str(config.credentials.dir)]
    is_code = PythonFilter(ignore_paths=ours)

    return lambda change, path: path == str(config.path) or is_code(change, path)


def _folders(config: Config) -> list[Path]:
    """Return where the config file and the code of its tasks are, installed packages left out."""
    folders = [config.folder]
    for place in _places(config):
        top = place.partition(":")[0].partition(".")[0]
        with suppress(ImportError, ValueError):
            folders += _folders_of(top)
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    wanted = {each for each in folders if not any(map(each.is_relative_to, installed))}

    # A folder is watched with all below it.
    return [each for each in wanted if wanted.isdisjoint(each.parents)]


def _places(config: Config) -> Iterator[str]:
    yield from config.runtime.hooks
    for task in config.tasks:
        yield task.entrypoint
        yield from task.hooks


def _folders_of(module: str) -> list[Path]:
    """Return the folders of a top-level module, which is found and not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(each).resolve() for each in spec.submodule_search_locations]

    return [Path(spec.origin).resolve().parent] if spec.has_location and spec.origin else []


def main(path: str, pidfd: str) -> None:
    """Watch until the supervisor is gone."""
    try:
        config = load_config(Path(path))
        sys.path.append(str(config.folder))
        supervisor = _Supervisor(config, int(pidfd))
        while not supervisor.is_set():
            config = _watch(config, supervisor)
    except (OSError, TdRuntimeError) as error:
        sys.exit(f"td-runtime: changes are not seen any more, start again: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
