"""Payloads that the official SDK uploads before it triggers: those of 128 KiB and more."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.node import Node
from tests.runtime_process import RuntimeProcess

pytestmark = pytest.mark.interop

TASKS = """
async def echo(payload):
    return payload

async def size(payload):
    return len(payload)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, node: Node) -> Any:
    """What the SDK was told, by call."""
    folder = tmp_path_factory.mktemp("runtime")
    with RuntimeProcess(folder, tasks=TASKS, workers=2, drain_timeout="0s") as runtime:
        yield node.ask("uploads.mjs", url=runtime.url, secret_key=runtime.secret_key)


def test_a_large_payload_goes_ahead(said: dict[str, Any]) -> None:
    """The task sees it as any other; one that is not large is sent with the request."""
    assert said["small"] == [100_000, 0]
    assert said["text"] == [300_000, 1]
    assert said["large"] == [1_000_000, 2]


def test_what_was_uploaded_is_decoded(said: dict[str, Any]) -> None:
    """Dates and sets arrive as in a small payload, and a large output comes back whole."""
    assert said["rich"] == {
        "when": "1970-01-01T00:00:00.000Z",
        "set": [1],
        "listed": 40_000,
        "last": "ten chars.",
        "same": True,
    }
    assert said["back"] == [2_000_000, True]


def test_batches_mix_small_and_large(said: dict[str, Any]) -> None:
    """Together they may be larger than one request to the supervisor; none changes its place."""
    assert said["batch"] == [10, 300_000, 2_000_000, 20, *[3_000_000] * 6]
    assert said["batchUploads"] == 8


def test_what_is_too_large_is_refused_at_once(said: dict[str, Any]) -> None:
    """With the limit that it is beyond, whether it could be uploaded or not."""
    names = ("tooLarge", "tooLargeInBatch", "muchTooLarge")

    assert [said[name]["status"] for name in names] == [413, 413, 413]
    assert "limits.payload = 10485760" in said["tooLarge"]["message"]
    assert "limits.payload = 10485760" in said["tooLargeInBatch"]["message"]
    assert said["muchTooLarge"]["message"].startswith("The payload is larger than 16 MiB")
    assert not any(said[name]["tookLong"] for name in names)


def test_public_tokens_upload_nothing(said: dict[str, Any]) -> None:
    """A page triggers with what fits into the request; the refusal says why."""
    assert said["byToken"]["status"] == 403
    assert "use the secret key" in said["byToken"]["message"]
