"""A control plane or a stream store that is down, busy or refuses: how few PUTs it then gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from td_sharedcache import CredentialCache, MintError, Policy, Slot
from td_worker.control_plane import ControlPlane
from td_worker.errors import StreamWriteError
from td_worker.stream_store import StreamStore
from td_worker.streams.client import StreamClient
from td_worker.streams.policy import StreamLimits
from td_worker.streams.writer import Writer
from tests.gateway_process import GatewayProcess, start_gateway
from tests.integration.sharedcache.processes import Child, Pipe

CHAT = Slot.run("run_1", "chat")
OTHER = Slot.run("run_1", "other")
PATIENT = Policy(store_wait=60.0, lock_wait=60.0)
"""A machine too busy to run 64 processes is no reason for one of them to go alone."""
OUTAGE = 2.0
"""Seconds that the control plane is down."""
TRIES = 5
"""PUTs of one mint that finds the control plane down for as long as it tries."""


def most_mints(seconds: float, policy: Policy) -> int:
    """Give how many mints of a slot can begin in `seconds` if each fails at once.

    The second follows at once, the others after 0.25, 0.5, 1 ... s, of which chance takes up to
    half.
    """
    mints, at = 1, 0.0
    while at <= seconds:
        mints += 1
        at += 0.5 * min(policy.backoff_cap, policy.backoff_base * 2.0 ** (mints - 2))

    return mints


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A real gateway process that knows `run_1`."""
    folder = tmp_path / "data"
    folder.mkdir()
    with start_gateway(folder) as process:
        process.add_run("run_1")
        yield process


@pytest.fixture
def go() -> Iterator[Pipe]:
    """Lets all children go at once."""
    pipe = Pipe()
    yield pipe
    pipe.close()


def start_hot(gateway: GatewayProcess, folder: Path, go: Pipe, ready: Pipe) -> list[Child]:
    """Start 64 processes that ask for one credential again and again until they have it."""

    async def ask() -> int:
        async with ControlPlane(gateway.url, gateway.secret_key) as plane:
            cache = CredentialCache(
                folder,
                origin=gateway.url,
                api_key=gateway.secret_key,
                minter=plane,
                policy=PATIENT,
            )
            try:
                # Opens the shared file: what comes later is about PUTs alone.
                await cache.get(OTHER)
            finally:
                ready.say()
            go.wait()
            failures = 0
            while True:
                try:
                    await cache.get(CHAT)
                except MintError:
                    failures += 1
                    await asyncio.sleep(0.01)  # how hot the loop is
                else:
                    return failures

    return [Child(lambda: asyncio.run(ask())) for _ in range(64)]


@pytest.mark.parametrize(
    ("status", "bound"),
    [(503, TRIES), (404, most_mints(OUTAGE, Policy()) + 1)],
    ids=["down", "refusing"],
)
def test_c5_64_hot_processes_leave_a_control_plane_that_is_down_alone(
    gateway, tmp_path, go, status, bound
):
    """C5: a control plane down for 2 s gets 5 PUTs at most, one that refuses the policy's few."""
    ready = Pipe()
    children = start_hot(gateway, tmp_path / "credentials", go, ready)
    ready.wait(64)
    gateway.fault(kind="status", status=status, target="control-plane")
    go.say(64)
    while str(CHAT) not in gateway.stats()["puts"]:
        time.sleep(0.01)
    time.sleep(OUTAGE)  # the outage itself
    gateway.clear_faults()
    failures = [child.result() for child in children]
    ready.close()

    answers = [mint["status"] for mint in gateway.stats()["mints"] if mint["slot"] == CHAT]
    assert answers.count(202) == 1
    assert 2 <= len(answers) <= bound
    assert (sum(failures) > 0) == (status == 404)


def test_c13_a_stream_that_refuses_every_credential_gets_a_bounded_number_of_puts(
    gateway, tmp_path, go
):
    """C13: 16 processes whose every append is answered 401 fail, with few PUTs between them."""
    policy = replace(PATIENT, backoff_cap=0.5)

    async def write() -> str:
        async with ControlPlane(gateway.url, gateway.secret_key) as plane, StreamStore() as store:
            cache = CredentialCache(
                tmp_path / "credentials",
                origin=gateway.url,
                api_key=gateway.secret_key,
                minter=plane,
                policy=policy,
            )
            client = StreamClient(
                asyncio.get_running_loop(),
                cache=cache,
                store=store,
                control_plane=plane,
                limits=StreamLimits(retry_cap=0.5),
            )
            writer = Writer(client.open(CHAT))
            go.wait()
            await writer.write("refused")
            try:
                await writer.wait()
            except StreamWriteError as error:
                return str(error)
            return "acked"

    gateway.fault(kind="status", status=401, target="stream-store")
    children = [Child(lambda: asyncio.run(write())) for _ in range(16)]
    began = time.monotonic()
    go.say(16)
    outcomes = [child.result() for child in children]
    took = time.monotonic() - began

    assert all("1 not acked and given up" in outcome for outcome in outcomes)
    assert 2 <= len(gateway.stats()["mints"]) <= most_mints(took, policy)


class Answers:
    """A control plane over real HTTP that answers as told, and notes when it was asked."""

    def __init__(self, answer: Callable[[int], tuple[int, dict[str, str]]]) -> None:
        self.asked: list[float] = []
        self.answer = answer

    @contextmanager
    def served(self) -> Iterator[str]:
        """Answer on loopback for the length of the block; gives the address."""
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                answers.asked.append(time.monotonic())
                status, headers = answers.answer(len(answers.asked))
                self.send_response(status)
                for name, value in {"content-length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()


async def test_retry_after_is_waited_out_within_a_mint() -> None:
    """A Retry-After that fits into the mint's deadline delays its next PUT by that much."""
    answers = Answers(lambda number: (503, {"retry-after": "2"}) if number == 1 else (404, {}))
    with answers.served() as url:
        async with ControlPlane(url, "tr_dev_key") as plane:
            with pytest.raises(MintError, match="404"):
                await plane.mint(CHAT)

    first, second = answers.asked
    assert second - first >= 2.0


@pytest.mark.parametrize(
    "asked",
    [
        {"retry-after": "40"},
        {"retry-after-ms": "40000"},
        {"retry-after": "40", "x-should-retry": "false"},
    ],
    ids=["seconds", "milliseconds", "for-others"],
)
async def test_a_retry_after_beyond_the_deadline_is_obeyed_by_the_whole_host(tmp_path, asked):
    """One PUT, then nobody asks for as long as the control plane wants, in no process."""
    answers = Answers(lambda _: (503, asked))
    with answers.served() as url:
        async with ControlPlane(url, "tr_dev_key") as plane:

            def open_cache() -> CredentialCache:
                return CredentialCache(tmp_path, origin=url, api_key="tr_dev_key", minter=plane)

            waits = []
            for cache in (open_cache(), open_cache()):
                for _ in range(2):
                    with pytest.raises(MintError) as caught:
                        await cache.get(CHAT)
                    waits.append(caught.value.retry_after)
                cache.close()

    assert len(answers.asked) == 1
    assert all(30 < (wait or 0) <= 40 for wait in waits)


@pytest.mark.parametrize(("status", "word", "puts"), [(503, "false", 1), (404, "true", 2)])
async def test_x_should_retry_goes_before_the_status(status, word, puts):
    """A 503 that says no is not asked again, a 404 that says yes is."""
    answers = Answers(
        lambda number: (status, {"x-should-retry": word}) if number == 1 else (400, {})
    )
    with answers.served() as url:
        async with ControlPlane(url, "tr_dev_key") as plane:
            with pytest.raises(MintError):
                await plane.mint(CHAT)

    assert len(answers.asked) == puts
