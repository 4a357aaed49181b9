"""Log lines: what they carry, what they never show, and what happens when nobody takes them."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from td_runtime import logs
from td_runtime.logs.masking import MASK
from td_runtime.secret import Secret


class Wire:
    """The socket lines are sent over, read by the test."""

    def __init__(self) -> None:
        self.sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.receiver.setblocking(False)

    def configure(self, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "format": "json",
            "level": "info",
            "host": "host-1",
            "worker": 3,
        }
        logs.configure(self.sender.fileno(), **(settings | changes))

    def take(self) -> bytes | None:
        """The next message, None when there is none."""
        try:
            return self.receiver.recv(1 << 20)
        except BlockingIOError:
            return None

    def take_all(self) -> list[bytes]:
        return list(iter(self.take, None))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in self.take_all()]

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()

        return line

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """A configured process, put back as it was: logging is the process's own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    config = structlog.get_config()
    monkeypatch.setattr(logs, "_process", logs._process)
    monkeypatch.setattr("td_runtime.logs.masking._secrets", ())
    wire = Wire()
    wire.configure()
    yield wire
    wire.close()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


def run_forked(body: Any) -> None:
    """Run body in a forked child and check that it went well."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    _, result = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(result) == 0


# What a line carries


def test_every_line_has_the_common_fields(wire):
    """Timestamp, level, event, host, pid and worker come first, then the event's own fields."""
    structlog.get_logger().info("thing.happened", slot="run/a/b", count=2)
    line = wire.line()

    assert list(line) == [
        *("timestamp", "level", "event", "host", "pid", "worker"),
        *("slot", "count"),
    ]
    assert line["timestamp"].endswith("Z")
    assert datetime.fromisoformat(line["timestamp"]).tzinfo == UTC
    assert (line["level"], line["event"]) == ("info", "thing.happened")
    assert (line["host"], line["pid"], line["worker"]) == ("host-1", os.getpid(), 3)


def test_a_message_is_one_line(wire):
    """Whatever is in it, a line has one newline, at its end."""
    structlog.get_logger().info("thing.happened", text="a\nb\r\n\u2028c\0")
    (message,) = wire.take_all()

    assert message.count(b"\n") == 1
    assert message.endswith(b"}\n")


def test_context_of_a_run_is_in_every_line(wire):
    """What the worker bound is in lines of structlog, logging and print alike."""
    with bound_contextvars(run_id="run_1", task="book", attempt=2), logs.capture_prints():
        structlog.get_logger().info("thing.happened")
        logging.getLogger("lib").warning("from %s", "lib")
        print("from print")

    lines = wire.lines()
    assert [line["event"] for line in lines] == ["thing.happened", "from lib", "task.printed"]
    for line in lines:
        assert (line["run_id"], line["task"], line["attempt"]) == ("run_1", "book", 2)


def test_a_field_never_hides_whose_line_it_is(wire):
    """A caller's own `pid` is kept under another name; `worker` may be said by the supervisor."""
    structlog.get_logger().info("worker.exited", pid=1, level="x", worker=7)
    line = wire.line()

    assert (line["pid"], line["level"], line["worker"]) == (os.getpid(), "info", 7)
    assert (line["pid_"], line["level_"]) == (1, "x")


def test_levels_are_filtered(wire):
    """Below the level nothing is sent, through structlog and logging alike."""
    wire.configure(level="warning")
    log = structlog.get_logger()
    log.info("thing.happened")
    log.warning("thing.broke")
    logging.getLogger("lib").info("no")
    logging.getLogger("lib").error("yes")

    assert [(line["level"], line["event"]) for line in wire.lines()] == [
        ("warning", "thing.broke"),
        ("error", "yes"),
    ]


def test_configuring_again_reaches_loggers_in_use(wire):
    """A logger that was cached on first use follows a new level, worker and descriptor."""
    log = structlog.get_logger()
    bound = log.bind(part="x")
    log.info("before")
    other = Wire()
    other.configure(level="debug", worker=9)
    log.debug("after")
    bound.debug("after too")

    assert [line["event"] for line in wire.lines()] == ["before"]
    assert [(line["event"], line["worker"]) for line in other.lines()] == [
        ("after", 9),
        ("after too", 9),
    ]
    other.close()


def test_a_forked_child_logs_under_its_own_pid(wire):
    """The process id in a line is the writer's, also in a child that configures nothing."""
    log = structlog.get_logger()
    log.info("parent.said")
    run_forked(lambda: log.info("child.said"))
    first, second = wire.lines()

    assert first["pid"] == os.getpid()
    assert second["pid"] not in (0, os.getpid())


def test_wire_dumps_of_libraries_stay_out(wire):
    """Httpcore's debug lines show response headers, and one of those is the access token."""
    wire.configure(level="debug")
    logging.getLogger("httpcore.http11").debug("headers %s", [(b"X-S2-Access-Token", b"t")])
    logging.getLogger("lib").debug("shown")

    assert wire.line()["event"] == "shown"


def test_warnings_are_logged(wire):
    """`warnings.warn` comes out as a line."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful now", stacklevel=1)
    line = wire.line()

    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "careful now" in line["event"]


def test_extra_of_stdlib_logging_is_kept(wire):
    """What a library passes as `extra` becomes fields."""
    logging.getLogger("lib").info("got it", extra={"attempts": 2})
    line = wire.line()

    assert (line["event"], line["logger"], line["attempts"]) == ("got it", "lib", 2)


def test_a_bad_format_string_ends_nothing(wire):
    """A call of stdlib logging that cannot be formatted comes out with its parts."""

    def body() -> None:
        root = logging.getLogger()
        for handler in [each for each in root.handlers if "pytest" in type(each).__module__]:
            root.removeHandler(handler)  # pytest's own raise, to fail the test
        logging.getLogger("lib").info("%d apples", "no")

    run_forked(body)
    line = wire.line()

    assert (line["event"], line["args"]) == ("%d apples", ["no"])
    assert "real number is required" in line["format_error"]


# Values


class Colour:
    def __repr__(self) -> str:
        return "<Colour red>"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_values_become_plain_json(wire):
    """Anything can be passed; what JSON has no word for is shown by its repr."""
    structlog.get_logger().info(
        "thing.happened",
        nested={"a": [1, (2, {3})], 4: None},
        colour=Colour(),
        broken=Broken(),
        raw=b"\xffx",
        large=1 << 70,
        bad="\ud800",
        nan=float("nan"),
    )
    line = wire.line()

    assert line["nested"] == {"a": [1, [2, [3]]], "4": None}
    assert line["colour"] == "<Colour red>"
    assert line["broken"] == "<Broken that cannot be shown>"
    assert line["raw"] == "\\xffx"
    assert line["large"] == str(1 << 70)
    assert line["bad"] == "\\ud800"
    assert line["nan"] is None


def test_a_value_that_contains_itself_is_cut(wire):
    """A cycle ends at a depth, not in a RecursionError."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    structlog.get_logger().info("thing.happened", cycle=cycle)

    assert wire.line()["cycle"]["self"]


def test_exceptions_are_rendered(wire):
    """An exception has its type, its message and the traceback as one string."""
    try:
        dict[str, int]()["missing"]
    except KeyError:
        structlog.get_logger().exception("thing.broke")
        logging.getLogger("lib").exception("lib broke")
    ours, theirs = wire.lines()

    for line in (ours, theirs):
        assert line["level"] == "error"
        assert line["exception"]["type"] == "KeyError"
        assert line["exception"]["message"] == "'missing'"
        assert line["exception"]["traceback"].startswith("Traceback (most recent call last):\n")
        assert "test_exceptions_are_rendered" in line["exception"]["traceback"]


def test_tracebacks_are_bounded(wire):
    """A long traceback keeps its beginning and its end."""
    wire.configure(max_traceback=1000)
    try:
        raise ValueError("x" * 5000 + " the end")
    except ValueError as error:
        structlog.get_logger().error("thing.broke", exc_info=error)
    text = wire.line()["exception"]["traceback"]

    assert len(text) < 1100
    assert text.startswith("Traceback")
    assert text.endswith("the end")
    assert "bytes cut]" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "ä" * 100_000},
        {"deep": {"list": ["x" * 100] * 2000}},
        {f"field_{number}": "x" * 50 for number in range(5000)},
    ],
    ids=["long string", "large value", "many fields"],
)
def test_long_lines_are_cut_and_marked(wire, fields):
    """A line over the limit is cut, says how long it was, and is still valid JSON."""
    structlog.get_logger().info("thing.happened", **fields)
    (message,) = wire.take_all()
    line = json.loads(message)

    assert len(message) <= 65_536
    assert line["event"] == "thing.happened"
    assert line["cut_from"] > 65_536


def test_pretty_lines(wire, monkeypatch):
    """The pretty format is for people: no JSON, tracebacks readable, control characters shown."""
    monkeypatch.setenv("NO_COLOR", "1")
    wire.configure(format="pretty")
    try:
        raise ValueError("oh")
    except ValueError:
        structlog.get_logger().exception("thing.broke", text="\x1b[31mred")
    text = b"".join(wire.take_all()).decode()

    assert "[error    ] thing.broke" in text
    assert "\nTraceback (most recent call last):\n" in text
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text


# Secrets


@dataclass
class Holder:
    access_token: str = field(repr=False)


def test_no_secret_is_in_a_line(wire):
    """A registered secret is masked wherever it turns up: value, key, message, traceback, print."""
    token = "s2_token_0123456789"
    logs.register_secret(token)
    log = structlog.get_logger()
    try:
        raise ValueError(f"refused {token}")
    except ValueError:
        log.exception("thing.broke", url=f"https://x/?t={token}", **{token: 1})
    logging.getLogger("lib").warning("got %s", token)
    with logs.capture_prints():
        print("token", token)
    messages = wire.take_all()

    assert len(messages) == 3
    assert token.encode() not in b"".join(messages)
    assert all(MASK.encode() in message for message in messages)


def test_fields_named_like_secrets_are_masked(wire):
    """A value under a secret's name is not shown, however deep and however spelled."""
    structlog.get_logger().info(
        "thing.happened",
        access_token="a1",
        headers={"Authorization": "b2", "X-S2-Access-Token": "c3", "Accept": "json"},
        grants=[{"secret-key": "d4"}],
    )
    line = wire.line()

    assert line["access_token"] == MASK
    assert line["headers"] == {"Authorization": MASK, "X-S2-Access-Token": MASK, "Accept": "json"}
    assert line["grants"] == [{"secret-key": MASK}]


def test_objects_are_not_taken_apart(wire):
    """A credential shows its masked repr; an encoder that walked its fields would print it."""
    structlog.get_logger().info("x.y", holder=Holder("hidden_1"), secret_value=Secret("hidden_2"))
    (message,) = wire.take_all()

    assert b"hidden" not in message


def test_bearer_tokens_are_masked(wire):
    """A token nobody registered is masked where it follows "Bearer"."""
    structlog.get_logger().info("x.y", error="sent Authorization: Bearer abc.DEF-123456")
    (message,) = wire.take_all()

    assert b"abc.DEF" not in message
    assert b"Bearer ***" in message


def test_a_secret_is_masked_before_a_value_is_cut(wire):
    """Cutting cannot leave half a secret behind."""
    token = "s2_token_" + "z" * 4000
    logs.register_secret(token)
    structlog.get_logger().info("x.y", text="." * 70_000 + token + "." * 70_000)
    (message,) = wire.take_all()

    assert b"zz" not in message


# Printing


def test_prints_become_lines(wire):
    """print, stderr and bytes come out line by line with the stream they were written to."""
    with logs.capture_prints():
        print("one", 1)
        print("two\nthree", file=sys.stderr)
        sys.stdout.buffer.write(b"four\xff\n")
        print("no newline", end="", flush=True)

    assert [(line["stream"], line["text"]) for line in wire.lines()] == [
        ("stdout", "one 1"),
        ("stderr", "two"),
        ("stderr", "three"),
        ("stdout", "four\\xff"),
        ("stdout", "no newline"),
    ]


def test_streams_are_put_back(wire):
    """After the block sys.stdout and sys.stderr are what they were."""
    before = sys.stdout, sys.stderr
    with logs.capture_prints():
        assert sys.stdout is not before[0]

    assert (sys.stdout, sys.stderr) == before


def test_threads_do_not_mix_their_lines(wire):
    """Halves of lines that two threads print at once never meet."""
    barrier = threading.Barrier(2)

    def say(word: str) -> None:
        for _ in range(50):
            print(word, end="")
            barrier.wait()
            print(word)
            barrier.wait()

    with logs.capture_prints():
        threads = [threading.Thread(target=say, args=(word,)) for word in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sorted({line["text"] for line in wire.lines()}) == ["aa", "bb"]


def test_an_endless_line_is_emitted_in_parts(wire):
    """Output without newlines cannot fill the memory."""
    with logs.capture_prints():
        sys.stdout.write("x" * 200_000)
    parts = [line["text"] for line in wire.lines()]

    assert len(parts) == 4


def test_output_of_subprocesses_and_c_code_is_captured(wire):
    """What is written to descriptors 1 and 2 becomes lines, and the descriptors are given back."""

    def body() -> None:
        before = os.fstat(1).st_ino
        with logs.CapturedOutput(logs.emit_printed) as output:
            assert sorted(output.readers.values()) == ["stderr", "stdout"]
            subprocess.run(["sh", "-c", "echo from sh; echo oh no >&2"], check=True)
            os.write(1, b"from C\nunfinished")
        assert os.fstat(1).st_ino == before

    run_forked(body)

    assert sorted((line["stream"], line["text"]) for line in wire.lines()) == [
        ("stderr", "oh no"),
        ("stdout", "from C"),
        ("stdout", "from sh"),
        ("stdout", "unfinished"),
    ]


def test_captured_output_is_read_by_a_loop(wire):
    """The descriptors can be watched by an event loop while a subprocess writes a lot."""

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        with logs.CapturedOutput(logs.emit_printed) as output:
            process = subprocess.Popen(["sh", "-c", "seq 1 500 >&2; echo done"])
            done = asyncio.Event()
            seen: list[str] = []

            def emit(stream: str, text: str) -> None:
                seen.append(text)
                if text == "done":
                    done.set()

            output._emit = emit
            for reader in output.readers:
                loop.add_reader(reader, output.read, reader)
            await done.wait()
            process.wait()
            for reader in output.readers:
                loop.remove_reader(reader)
        assert [text for text in seen if text != "done"] == [str(n) for n in range(1, 501)]

    run_forked(lambda: asyncio.run(watch()))


# When nobody takes the lines


def test_dropped_lines_are_counted_and_said(wire):
    """With a full socket lines are dropped without waiting; the next one that fits tells how many.

    Nothing is lost silently: what was read, plus what `log.dropped` says, is what was logged.
    """
    log = structlog.get_logger()
    sender = logs._process.sender
    logged = 0
    while sender.dropped < 10:  # type: ignore[attr-defined]
        log.info("thing.happened", number=logged)
        logged += 1
    read = wire.lines()
    log.info("thing.resumed")
    dropped, resumed = wire.lines()

    assert [line["number"] for line in read] == list(range(len(read)))
    assert (dropped["event"], dropped["level"]) == ("log.dropped", "warning")
    assert len(read) + dropped["count"] == logged
    assert resumed["event"] == "thing.resumed"


def test_close_says_what_is_unsaid(wire):
    """The count of dropped lines comes out even if nothing is logged afterwards."""
    log = structlog.get_logger()
    while not logs._process.sender.dropped:  # type: ignore[attr-defined]
        log.info("thing.happened")
    wire.take_all()
    logs.close(timeout=5)

    assert [(line["event"], line["count"]) for line in wire.lines()] == [("log.dropped", 1)]


def test_a_sink_that_is_gone_ends_nothing(wire):
    """Logging goes on, into the void, when the reading end has closed."""
    wire.receiver.close()
    structlog.get_logger().info("thing.happened")

    assert logs._process.sender.dropped == 1  # type: ignore[attr-defined]


def test_without_a_descriptor_lines_go_to_stderr(wire, capfd):
    """A process that has no sink writes to stderr."""
    logs.configure(None, format="json", level="info", host="h", worker=None)
    structlog.get_logger().info("thing.happened")
    captured = capfd.readouterr()

    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "thing.happened"


def test_auto_means_json_for_a_pipe():
    """`auto` is pretty on a terminal only."""
    reader, writer = os.pipe()
    controller, terminal = os.openpty()
    try:
        assert logs.resolve_format("auto", writer) == "json"
        assert logs.resolve_format("auto", terminal) == "pretty"
        assert logs.resolve_format("json", terminal) == "json"
        assert logs.resolve_format("pretty", writer) == "pretty"
    finally:
        for fd in (reader, writer, controller, terminal):
            os.close(fd)
