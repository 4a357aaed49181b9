"""The official npm SDK as Python sees it: one short-lived Node process a call."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.interop.node import HERE, Node

SILENCE_S = 30
"""After so long the server ends a stream that should go on and does not."""
PATIENCE_S = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Sdk:
    """Calls of `@trigger.dev/sdk`, pointed at one gateway by the environment as its users do."""

    node: Node
    url: str
    secret_key: str

    def read(self, run_id: str, key: str, **options: object) -> list[Any]:
        """Return what `streams.read` yields until the server ends the stream or `limit` is reached.

        Args:
            run_id: the run whose stream is read.
            key: the stream's key.
            options: what the SDK takes (`startIndex`, `timeoutInSeconds`), and `limit`.
        """
        asked = json.dumps({"timeoutInSeconds": SILENCE_S} | options)
        printed = self._run("read.mjs", run_id, key, asked)
        # str.splitlines would also split at U+2028, which JSON may hold as it is.
        return [json.loads(line) for line in printed.split("\n") if line]

    @contextmanager
    def follow(self, run_id: str, key: str, **options: object) -> Iterator[Iterator[Any]]:
        """Yield what `streams.read` yields, as it comes."""
        asked = json.dumps({"timeoutInSeconds": SILENCE_S} | options)
        with subprocess.Popen(
            self._command("read.mjs", run_id, key, asked),
            cwd=HERE,
            env=self._environment(),
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            try:
                yield (json.loads(line) for line in process.stdout)
            finally:
                process.kill()

    def append(self, run_id: str, key: str, *parts: str) -> None:
        """Send each part with `streams.append`, one after the other."""
        self._run("append.mjs", run_id, key, stdin=json.dumps(parts))

    def pipe(self, run_id: str, key: str, values: list[Any]) -> None:
        """Write the values with one `streams.pipe`; they are durable on return."""
        self._run("pipe.mjs", run_id, key, stdin=json.dumps(values))

    def session(
        self, session_id: str, *instructions: dict[str, Any], channel: str | None = None
    ) -> list[Any]:
        """Have one process do one thing after the other to a session; see `session.mjs`.

        Args:
            session_id: Either of its ids.
            instructions: What to do, each with `do` and what that takes.
            channel: A named channel instead of the session's own.

        Returns:
            What each instruction gave.
        """
        lines = "\n".join(json.dumps(one) for one in instructions)
        names = [session_id] if channel is None else [session_id, channel]
        printed = self._run("session.mjs", *names, stdin=lines)

        return [json.loads(line) for line in printed.split("\n") if line]

    def _run(self, script: str, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            self._command(script, *arguments),
            cwd=HERE,
            env=self._environment(),
            input=stdin.encode(),
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            raise SdkError(f"{script} failed ({done.returncode}): {done.stderr.decode()}")

        return done.stdout.decode()

    def _command(self, script: str, *arguments: str) -> list[str]:
        return [self.node.executable, "--import", "./only_loopback.mjs", script, *arguments]

    def _environment(self) -> dict[str, str]:
        return self.node.environment(
            TRIGGER_API_URL=self.url, TRIGGER_SECRET_KEY=self.secret_key, OTEL_SDK_DISABLED="true"
        )


class SdkError(Exception):
    """A script that drives the SDK failed; the message is what Node printed."""
