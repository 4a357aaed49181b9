from __future__ import annotations

import pytest

from td_runtime.gateway import errors
from td_runtime.gateway.errors import GatewayError
from td_runtime.gateway.exchange import Exchange
from td_runtime.gateway.guard import Guard
from td_runtime.gateway.journal import Journal
from td_runtime.gateway.platform.control_plane import slot_of
from td_runtime.gateway.platform.mints import MintLog
from td_runtime.gateway.platform.refusals import reply_to
from td_runtime.gateway.platform.subscription import parse_cursor
from td_runtime.gateway.settings import LogSettings, Settings
from td_sharedcache.slot import Slot


@pytest.mark.parametrize(
    ("run", "key"), [("run_1", "out"), ("r/1", "a b/ü%"), ("r", "$trigger.input:x")]
)
def test_slots_are_spelled_as_the_cache_spells_them(run: str, key: str) -> None:
    """The statistics' slots are the credential cache's own texts."""
    assert slot_of(run, key) == Slot.run(run, key)


@pytest.mark.parametrize(
    ("text", "start"),
    [("", 0), ("0", 1), ("41", 42), ("41-3", 42), ("-1", 0), ("4,2,1", 0), ("4x", 0), ("٣", 0)],
)
def test_cursors(text: str, start: int) -> None:
    """A cursor is the ASCII digits before a dash; anything else starts over."""
    assert parse_cursor(text) == start


def settings(host: str) -> Settings:
    return Settings(data_dir="/x", host=host, port=80, secret_key="hush", control_fd=3)


async def status_of(host: str, header: str) -> int:
    """The status that a gateway on `host` gives to a request with this Host header."""
    sent: list[int] = []

    async def send(message: object) -> None:
        if message["type"] == "http.response.start":  # type: ignore[index]
            sent.append(message["status"])  # type: ignore[index]

    async def application(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200})  # type: ignore[operator]

    guard = Guard(application, settings=settings(host), journal=Journal(LogSettings()))
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "headers": [(b"host", header.encode())],
    }
    await guard(scope, None, send)  # type: ignore[arg-type]

    return sent[0]


@pytest.mark.parametrize(
    ("host", "header", "status"),
    [
        ("127.0.0.1", "127.0.0.1:80", 200),
        ("127.0.0.1", "localhost:80", 200),
        ("127.0.0.1", "localhost", 200),
        ("127.0.0.1", "10.0.0.1:80", 403),
        ("127.0.0.1", "rebound.example", 403),
        ("127.0.0.1", "rebound.example:80", 403),
        ("::1", "[::1]:80", 200),
        ("::1", "[::1]", 200),
        ("10.0.0.1", "10.0.0.1:80", 200),
        ("10.0.0.1", "10.0.0.2:80", 403),
        ("0.0.0.0", "10.0.0.2:80", 200),
        ("0.0.0.0", "[fe80::1]:80", 200),
        ("0.0.0.0", "10.0.0.2", 200),
        ("0.0.0.0", "10.0.0.2:81", 403),
        ("0.0.0.0", "rebound.example:80", 403),
    ],
)
async def test_hosts(host: str, header: str, status: int) -> None:
    """Our own addresses pass with our port, said or implied; names that may be rebound do not."""
    assert await status_of(host, header) == status


def test_settings_hide_the_key() -> None:
    """A repr of the settings does not hold the secret key."""
    assert "hush" not in repr(settings("::1"))
    assert settings("::1").netloc == "[::1]:80"
    assert settings("0.0.0.0").advertised == "localhost:80"


def all_errors(root: type[GatewayError]) -> list[type[GatewayError]]:
    return [root] + [e for child in root.__subclasses__() for e in all_errors(child)]


def test_every_error_a_client_can_meet_has_an_answer() -> None:
    """Each error that is raised while a request is served is mapped to a status."""
    made = [
        errors.BodyTooLargeError(limit=1),
        errors.RangeUnsatisfiableError(seq_num=1, timestamp=2),
        errors.SeqNumMismatchError(1),
        errors.FencingTokenMismatchError("x"),
        errors.StreamNotFoundError("x"),
    ]
    abstract = {GatewayError, errors.RequestError, errors.ConditionFailedError, errors.AccessError}
    inner = {errors.SettingsError, errors.StoreOpenError, errors.PortUnavailableError}
    rest = set(all_errors(GatewayError)) - abstract - inner - {type(e) for e in made}

    statuses = [reply_to(e).status for e in [*made, *(kind("x") for kind in rest)]]

    assert len(statuses) == len(set(all_errors(GatewayError)) - abstract - inner)
    assert all(400 <= status < 600 for status in statuses)
    for kind in {*abstract, *inner, *rest}:
        assert kind.__name__ in (errors.__doc__ or "")


def test_the_mint_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of slots longest unused are let go; a slot in use keeps its count."""
    monkeypatch.setattr("td_runtime.gateway.platform.mints.SLOTS_KEPT", 3)
    log = MintLog()
    for slot in ("a", "b", "a", "c", "a", "d", "e"):
        with log.record(slot) as mint:
            mint.finish(202)

    assert log.counts == {"a": 3, "d": 1, "e": 1}
    assert [m["slot"] for m in log.mints] == ["a", "b", "a", "c", "a", "d", "e"]


def test_a_mint_ends_once() -> None:
    """What comes first counts: an answer, or the client's leaving."""
    log = MintLog()
    with log.record("answered") as answered:
        answered.finish(202)
        answered.abort()
    with log.record("left") as left:
        left.abort()
        left.finish(202)

    assert [(m["status"], m["aborted"]) for m in log.mints] == [(202, False), (None, True)]


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", ""), ("abc", ""), ("", "")],
)
def test_bearers(header: str, token: str) -> None:
    """The scheme's case does not matter, other schemes give nothing."""
    scope = {
        "method": "GET",
        "raw_path": b"/",
        "headers": [(b"Authorization", header.encode())],
    }
    exchange = Exchange(scope, None, None)  # type: ignore[arg-type]

    assert exchange.bearer == token
    assert exchange.has_key("abc") is (token == "abc")
