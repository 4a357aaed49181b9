"""The page of docs/how-to/show-an-answer-in-a-browser.md, in Chromium, with a Python agent."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from aiohttp import web

from tests.integration.browser.chromium import Page, find_chromium, open_page
from tests.runtime_process import RuntimeProcess

ROOT = Path(__file__).parents[3]
HOW_TO = (ROOT / "docs/how-to/show-an-answer-in-a-browser.md").read_text("utf-8")
TASKS = """
from td_worker import chat


async def _pieces(turn):
    yield "Well, "
    yield (await chat.messages.once(timeout=60)).unwrap().message["parts"][0]["text"]
    yield " \\u2014 gr\\u00fc\\u00dfe \\U0001f389"


@chat.agent
async def slow(turn):
    async for chunk in chat.text(_pieces(turn)):
        yield chunk

""" + re.findall(r"^```python\n(.+?)^```$", HOW_TO, re.DOTALL | re.MULTILINE)[0]
BODY_ENDS = """new Promise((resolve) => {
    const ended = () => performance
        .getEntriesByType("resource")
        .filter((entry) => entry.name.endsWith("/out")).length;
    const before = ended();
    const look = () => ended() > before && resolve();
    new PerformanceObserver(look).observe({ type: "resource" });
})"""
[PAGE] = re.findall(r"^```html\n(.+?)^```$", HOW_TO, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def chromium() -> str:
    """Return where Chromium is."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine")

    return executable


@asynccontextmanager
async def serve(page: str) -> AsyncIterator[str]:
    """Serve the page on loopback, as a user's own server does; yield its origin."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    app = web.Application()
    app.router.add_get("/answer.html", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def start_runtime(folder: Path, origin: str) -> RuntimeProcess:
    """Return a runtime whose gateway answers pages of one origin."""
    return RuntimeProcess(
        folder,
        tasks=TASKS,
        workers=1,
        drain_timeout="0s",
        options=f'[gateway]\nallow_origins = ["{origin}"]',
    )


def start_session(runtime: RuntimeProcess, task: str, name: str) -> str:
    """Start a session as a user's own server does; return the fragment for the page."""
    answer = httpx.post(
        f"{runtime.url}/api/v1/sessions",
        headers={"authorization": f"Bearer {runtime.secret_key}"},
        json={
            "type": "chat.agent",
            "externalId": name,
            "taskIdentifier": task,
            "triggerConfig": {"basePayload": {"chatId": name, "trigger": "preload"}},
        },
        timeout=30,
    )
    token = answer.raise_for_status().json()["publicAccessToken"]

    return urlencode({"url": runtime.url, "session": name, "token": token})


async def ask(page: Page, question: str) -> None:
    """Type a question and press the button."""
    typed = f"document.forms[0].question.value = {json.dumps(question)}"
    await page.evaluate(f"{typed}; document.forms[0].requestSubmit()")


async def wait_for_text(page: Page, element: str, text: str) -> None:
    await page.wait_for(f"document.getElementById('{element}').textContent === {json.dumps(text)}")


@pytest.mark.conformance("EB1")
async def test_a_page_shows_an_answer_as_it_streams(chromium: str, data_dir: Path) -> None:
    """What an agent has said is on the page while it still speaks, and the rest once it is said."""
    async with serve(PAGE) as origin:
        with start_runtime(data_dir, origin) as runtime:
            fragment = start_session(runtime, "slow", "chat 1 \u00fc")
            url = f"{origin}/answer.html#{fragment}"
            async with open_page(chromium, url, data_dir / "profile") as page:
                await ask(page, "hello?")
                await wait_for_text(page, "answer", "Well, ")
                assert await page.evaluate("state.textContent") == "answering"

                await ask(page, "hello")
                await wait_for_text(page, "answer", "Well, hello \u2014 gr\u00fc\u00dfe \U0001f389")
                await wait_for_text(page, "state", "complete")


async def test_a_page_goes_on_where_it_stopped(chromium: str, data_dir: Path) -> None:
    """A body that ends after a second's silence is asked for again, behind what was read."""
    impatient = PAGE.replace('"timeout-seconds": "600"', '"timeout-seconds": "1"')
    assert impatient != PAGE
    async with serve(impatient) as origin:
        with start_runtime(data_dir, origin) as runtime:
            fragment = start_session(runtime, "answer", "chat-17")
            url = f"{origin}/answer.html#{fragment}"
            async with open_page(chromium, url, data_dir / "profile") as page:
                await ask(page, "one")
                await wait_for_text(page, "answer", "You said: one")
                await wait_for_text(page, "state", "complete")
                await page.evaluate(BODY_ENDS)
                await ask(page, "two")
                await wait_for_text(page, "answer", "You said: two")


async def test_a_page_of_another_origin_is_told_nothing(chromium: str, data_dir: Path) -> None:
    """A page that is not in `allow_origins` cannot read a session, even with its token."""
    async with serve(PAGE) as origin, serve(PAGE) as stranger:
        with start_runtime(data_dir, origin) as runtime:
            fragment = start_session(runtime, "answer", "chat-17")
            url = f"{stranger}/answer.html#{fragment}"
            async with open_page(chromium, url, data_dir / "profile") as page:
                await wait_for_text(page, "state", "Failed to fetch")


async def test_a_page_with_a_wrong_token_says_so(chromium: str, data_dir: Path) -> None:
    """A page without a good token shows why it is refused, and asks no more."""
    async with serve(PAGE) as origin:
        with start_runtime(data_dir, origin) as runtime:
            given: dict[str, Any] = {"url": runtime.url, "session": "chat-17", "token": "none"}
            url = f"{origin}/answer.html#{urlencode(given)}"
            async with open_page(chromium, url, data_dir / "profile") as page:
                await page.wait_for("state.textContent.includes('error')")
