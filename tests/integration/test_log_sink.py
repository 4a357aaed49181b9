"""The log sink as a real process: real forks, real pipes, real kills."""

import fcntl
import json
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from td_runtime import logs
from td_runtime.log_sink import LogSink


def fork(body: Callable[[], object]) -> int:
    """Run body in a child that never returns here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)

    return pid


def wait(pid: int) -> int:
    _, status = os.waitpid(pid, 0)

    return os.waitstatus_to_exitcode(status)


def has_ended(pidfd: int, timeout: float = 20.0) -> bool:
    """Whether a process has ended, waiting for it at most so long."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)

    return bool(poller.poll(timeout * 1000))


def send(fd: int, line: dict[str, Any]) -> None:
    """Send one line, waiting for room: these tests count lines."""
    message = json.dumps(line).encode() + b"\n"
    while True:
        try:
            os.write(fd, message)
        except BlockingIOError:
            select.select([], [fd], [])
        else:
            return


def start_into(path: Path) -> LogSink:
    """A sink that writes into a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return LogSink.start(out_fd=fd, format="json", host="h")
    finally:
        os.close(fd)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_lines_of_many_processes_come_out_whole_and_in_order(tmp_path):
    """Every line of every process is written once, untorn, in its sender's order."""
    sink = start_into(tmp_path / "out")

    def say(sender: int) -> None:
        for number in range(1000):
            send(sink.fd, {"sender": sender, "number": number, "text": "x" * 300})

    senders = [fork(lambda sender=sender: say(sender)) for sender in range(4)]  # type: ignore[misc]
    assert [wait(pid) for pid in senders] == [0] * 4
    assert sink.close() == 0
    lines = read_lines(tmp_path / "out")

    assert len(lines) == 4000
    assert all(line["text"] == "x" * 300 for line in lines)
    for sender in range(4):
        assert [line["number"] for line in lines if line["sender"] == sender] == list(range(1000))


def test_what_processes_log_arrives(tmp_path):
    """A configured child's lines, its prints and its last words come out of the sink."""
    with start_into(tmp_path / "out") as sink:

        def body() -> None:
            logs.configure(sink.fd, format="json", level="info", host="h", worker=2)
            with logs.capture_prints():
                print("printed")
                structlog.get_logger().info("thing.happened")
                print("unfinished", end="")
            logs.close()

        assert wait(fork(body)) == 0

    assert [
        (line["event"], line["worker"], line.get("text")) for line in read_lines(tmp_path / "out")
    ] == [
        ("task.printed", 2, "printed"),
        ("thing.happened", 2, None),
        ("task.printed", 2, "unfinished"),
    ]


def test_a_stalled_reader_blocks_no_sender(tmp_path):
    """With nobody reading stdout everything can still be sent; what is lost is counted and said."""
    reader, writer = os.pipe()
    sink = LogSink.start(out_fd=writer, format="json", host="h")
    os.close(writer)
    count = 1500
    for number in range(count):  # 24 MB: more than pipe, queue and socket hold together
        send(sink.fd, {"number": number, "text": "x" * 16_000})

    def collect() -> None:
        os.close(sink.fd)
        with open(tmp_path / "out", "wb") as out, open(reader, "rb") as source:
            out.writelines(source)

    collector = fork(collect)
    assert sink.close(timeout=60) == 0
    assert wait(collector) == 0
    os.close(reader)
    lines = read_lines(tmp_path / "out")
    numbers = [line["number"] for line in lines if "number" in line]
    told = [line for line in lines if line.get("event") == "log.dropped"]

    assert numbers == sorted(numbers)
    assert told
    assert len(numbers) + sum(line["count"] for line in told) == count
    assert {(line["level"], line["host"]) for line in told} == {("warning", "h")}


def test_a_broken_stdout_blocks_no_sender():
    """After its reader has gone the sink goes on taking lines, and says so by its exit status."""
    reader, writer = os.pipe()
    sink = LogSink.start(out_fd=writer, format="json", host="h")
    os.close(writer)
    os.close(reader)
    for number in range(2000):
        send(sink.fd, {"number": number, "text": "x" * 10_000})

    assert sink.close(timeout=60) == 1


def test_the_shared_descriptor_keeps_its_flags():
    """Stdout is not made non-blocking: it is shared with the user's shell."""
    reader, writer = os.pipe()
    with LogSink.start(out_fd=writer, format="json", host="h") as sink:
        send(sink.fd, {"number": 1})
        assert os.read(reader, 100)
        assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(reader)
    os.close(writer)


def test_signals_meant_for_others_do_not_end_it(tmp_path):
    """A Ctrl-C, a SIGTERM to everybody and a closed terminal leave the sink at work."""
    with start_into(tmp_path / "out") as sink:
        send(sink.fd, {"number": 1})
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(sink.pid, number)
        send(sink.fd, {"number": 2})
        assert sink.close() == 0

    assert read_lines(tmp_path / "out") == [{"number": 1}, {"number": 2}]


def test_it_holds_nothing_of_its_parent(tmp_path):
    """A descriptor the parent happens to have open is not kept open by the sink."""
    reader, writer = os.pipe()
    with start_into(tmp_path / "out") as sink:
        send(sink.fd, {"number": 1})
        os.close(writer)
        assert os.read(reader, 1) == b""  # waits for ever if the sink holds the writing end
    os.close(reader)


@pytest.mark.parametrize("message", [b"\x00", b"\x00{", b'\x00{"guard": "x"}', b'\x00{"nope": 1}'])
def test_a_control_message_that_makes_no_sense_is_left_alone(tmp_path, message):
    """The sink never ends, and never writes, because of what it was told."""
    with start_into(tmp_path / "out") as sink:
        os.write(sink.fd, message)
        send(sink.fd, {"number": 1})

    assert read_lines(tmp_path / "out") == [{"number": 1}]


# The guard


def start_sleeper() -> int:
    """Fork a process that leads its own group and sleeps until it is killed."""
    ready, told = os.pipe()

    def sleep() -> None:
        os.setpgid(0, 0)
        os.write(told, b"x")
        signal.pause()

    pid = fork(sleep)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)

    return pid


class Supervised:
    """A process that starts a sink and two sleepers, of which it keeps only the first guarded."""

    def __init__(self, path: Path, leave: Callable[[LogSink], object]) -> None:
        ours, theirs = socket.socketpair()

        def supervise() -> None:
            sink = start_into(path)
            guarded, forgotten = start_sleeper(), start_sleeper()
            assert sink.guard(guarded)
            assert sink.guard(forgotten)
            assert sink.unguard(forgotten)
            send(sink.fd, {"said": "last words"})
            theirs.send(json.dumps([sink.pid, guarded, forgotten]).encode())
            theirs.recv(1)
            leave(sink)

        self.pid = fork(supervise)
        sink, guarded, self.forgotten_pid = json.loads(ours.recv(1000))
        self.sink = os.pidfd_open(sink)
        self.guarded = os.pidfd_open(guarded)
        self.forgotten = os.pidfd_open(self.forgotten_pid)
        ours.send(b"x")
        ours.close()
        theirs.close()

    def close(self) -> None:
        for pidfd in (self.guarded, self.forgotten, self.sink):
            if not has_ended(pidfd, 0):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def test_kill_9_of_the_supervisor_leaves_nothing_over(tmp_path):
    """The sink kills the groups it was told of, not those it was told to forget, and ends."""
    tree = Supervised(tmp_path / "out", lambda _sink: signal.pause())
    os.kill(tree.pid, signal.SIGKILL)
    assert wait(tree.pid) == -signal.SIGKILL

    assert has_ended(tree.guarded)
    assert has_ended(tree.sink)
    assert not has_ended(tree.forgotten, 0)
    assert read_lines(tmp_path / "out") == [{"said": "last words"}]
    tree.close()


def test_a_supervisor_that_says_goodbye_is_not_cleaned_up_after(tmp_path):
    """After a regular stop the sink kills nobody, even if a sender is left."""
    tree = Supervised(tmp_path / "out", lambda sink: sink.close())
    assert wait(tree.pid) == 0

    assert has_ended(tree.sink)
    assert not has_ended(tree.guarded, 0)
    tree.close()


def test_telling_a_dead_sink_is_noticed(tmp_path):
    """The supervisor learns that its guard is gone, without an exception and without waiting."""
    sink = start_into(tmp_path / "out")
    os.kill(sink.pid, signal.SIGKILL)
    assert has_ended(sink.pidfd)

    assert not sink.guard(os.getpid())
    assert sink.close() == -signal.SIGKILL
