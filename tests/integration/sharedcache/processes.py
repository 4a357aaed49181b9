"""Forked children that report back, and minters that leave their mark for every process to see."""

import json
import os
import signal
import time
import traceback

from td_sharedcache import CredentialCache, MintError
from td_sharedcache.testing import make_grant

_LONGEST_CHILD = 60
"""Seconds after which a child is ended by the kernel."""


class Pipe:
    """A pipe that both sides of a fork keep open: one byte is one event."""

    def __init__(self):
        self.reader, self.writer = os.pipe()

    def say(self, times=1):
        os.write(self.writer, b"." * times)

    def wait(self, times=1):
        for _ in range(times):
            assert os.read(self.reader, 1)

    def close(self):
        os.close(self.reader)
        os.close(self.writer)


class Child:
    """A forked child that runs `work` and sends what it returned as JSON."""

    def __init__(self, work):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _run_and_leave(work, writer)
        os.close(writer)
        self._reader = reader

    def result(self):
        """Wait for the child's end and give what it returned."""
        with os.fdopen(self._reader, "rb") as source:
            report = source.read()
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, report.decode()

        return json.loads(report)

    def kill(self):
        """End the child with SIGKILL and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        self.end()

    def end(self):
        """Wait for the end of a child that is killed."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._reader)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _run_and_leave(work, writer):
    # A child whose test has failed may wait for a byte that nobody will send.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_LONGEST_CHILD)
    code = 1
    try:
        try:
            report = json.dumps(work())
            code = 0
        except BaseException:
            report = traceback.format_exc()
        with os.fdopen(writer, "w") as sink:
            sink.write(report)
    finally:
        os._exit(code)


class MarkingMinter:
    """A minter that counts in a file, and if asked says that it started and waits for leave."""

    def __init__(self, folder, *, seconds=0.0, error=None, started=None, go=None):
        self.path = folder / "mints"
        self.path.touch()
        self.seconds = seconds
        self.error = error
        self.started = started
        self.go = go

    @property
    def count(self):
        return self.path.stat().st_size

    def mint(self, slot):
        mark = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(mark, b".")
        os.close(mark)
        if self.started:
            self.started.say()
        if self.go:
            self.go.wait()
        time.sleep(self.seconds)  # the length of a PUT, not a way to wait for something
        if self.error:
            raise self.error
        return make_grant(slot, self.count)


def open_cache(folder, minter, **options):
    """Open the cache that all processes of a test share."""
    return CredentialCache(
        folder / "cache", origin="http://127.0.0.1", api_key="tr_dev_key", minter=minter, **options
    )


def database(folder):
    """Give the path of the shared file."""
    (path,) = (folder / "cache").glob("*/cache.db")

    return path


def say_when_waiting(cache, pipe):
    """Make a cache say once that it has looked, found a mint under way, and waits."""
    patiently = cache._minting._check_wait
    said: list[str] = []

    def check_wait(slot, since):
        if not said:
            said.append(slot)
            pipe.say()
        patiently(slot, since)

    cache._minting._check_wait = check_wait


def facts(error):
    """Give what a caller can see of a failed mint."""
    assert isinstance(error, MintError)

    return [str(error), error.retryable, error.retry_after, error.status]
