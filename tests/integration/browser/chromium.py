"""One page in a headless Chromium, driven by the DevTools protocol.

::

    async with open_page(executable, "http://127.0.0.1:8000/", profile) as page:
        assert await page.evaluate("document.title") == "An answer"
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing but this machine has an address.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
LISTENING = b"DevTools listening on "
PATIENCE_S = 60


class PageError(Exception):
    """The browser did not do what it was asked to; the message is its own."""


def find_chromium() -> str | None:
    """Return where Chromium is, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page, by the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._session: str | None = None
        self._count = 0

    async def open(self, url: str) -> None:
        """Open the page in a tab of its own."""
        target = await self._call("Target.createTarget", url="about:blank")
        attached = await self._call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        await self._call("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives, awaited if it is a promise.

        Raises:
            PageError: It throws.
        """
        answer = await self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise PageError(json.dumps(answer["exceptionDetails"]))

        return answer["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Return once an expression about the document is true.

        Raises:
            TimeoutError: It does not become true; the message has the text of the page.
        """
        watched = f"""new Promise((resolve) => {{
            const look = () => ({condition}) && resolve();
            const all = {{ subtree: true, childList: true, characterData: true }};
            new MutationObserver(look).observe(document, all);
            document.addEventListener("readystatechange", look);
            look();
        }})"""
        try:
            await asyncio.wait_for(self.evaluate(watched), PATIENCE_S)
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise TimeoutError(f"{condition} is not true of: {text}") from None

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        number = self._count
        called: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            called["sessionId"] = self._session
        await self._socket.send_json(called)
        while True:
            answer = await self._socket.receive_json(timeout=2 * PATIENCE_S)
            if answer.get("id") != number:
                continue
            if "error" in answer:
                raise PageError(f"{method}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result


@asynccontextmanager
async def open_page(executable: str, url: str, profile: Path) -> AsyncIterator[Page]:
    """Start a Chromium with a profile of its own, and open one page in it."""
    async with (
        _browser(executable, profile) as devtools,
        aiohttp.ClientSession() as http,
        http.ws_connect(devtools, max_msg_size=0) as socket,
    ):
        page = Page(socket)
        await page.open(url)
        yield page


@asynccontextmanager
async def _browser(executable: str, profile: Path) -> AsyncIterator[str]:
    # Its sandbox needs another user than root, and only pages of this suite are opened.
    flags = [*FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.getuid() == 0 else [])]
    process = await asyncio.create_subprocess_exec(
        executable,
        *flags,
        env={"PATH": os.defpath, "HOME": str(profile), "LANG": "C.UTF-8"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        address = await asyncio.wait_for(_address(process.stderr), PATIENCE_S)
        # What it says later is read too, or it would stop at a full pipe.
        draining = asyncio.create_task(process.stderr.read())
        yield address
    finally:
        process.terminate()
        await process.wait()
    await draining


async def _address(log: asyncio.StreamReader) -> str:
    said = b""
    async for line in log:
        said += line
        if line.startswith(LISTENING):
            return line.removeprefix(LISTENING).decode().strip()

    raise PageError(f"Chromium ended: {said.decode(errors='replace')}")
