"""Runs over HTTP, as any client sends them: what is refused, and with which words."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.gateway.public_tokens import bearer
from tests.runtime_process import RuntimeProcess


@pytest.fixture(scope="module")
def client(runtime: RuntimeProcess) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {runtime.secret_key}"}
    with httpx.Client(base_url=runtime.url, headers=headers, timeout=30) as client:
        yield client


def options(**facts: Any) -> dict[str, Any]:
    return {"payload": 1, "options": facts}


BAD: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/api/v1/tasks/echo/trigger", b"", 400, "Request body is empty"),
    ("POST", "/api/v1/tasks/echo/trigger", b"{", 400, "Invalid JSON"),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        [],
        400,
        "Validation error: Expected `object`, got `array`",
    ),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        options(maxAttempts="3"),
        400,
        "Validation error: Expected `int | null`, got `str` - at `$.options.maxAttempts`",
    ),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        options(idempotencyKey="k" * 2049),
        400,
        "Validation error: Expected `str` of length <= 2048 - at `$.options.idempotencyKey`",
    ),
    (
        "POST",
        "/api/v1/tasks/ech/trigger",
        {},
        422,
        (
            "there is no task 'ech'; did you mean 'echo'? "
            "(registered: echo, hello, fail, hang, typed, nightly)"
        ),
    ),
    ("POST", "/api/v1/tasks/echo/trigger", options(delay="soon"), 422, "Invalid delay soon"),
    ("POST", "/api/v1/tasks/echo/trigger", options(ttl="1x"), 422, "Invalid ttl 1x"),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        options(idempotencyKey="a", idempotencyKeyTTL="never"),
        422,
        "Invalid idempotencyKeyTTL never",
    ),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        options(maxAttempts=0),
        422,
        "max_attempts = 0 for task 'echo'; it must be from 1 to 1000",
    ),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        options(queue={"name": "nowhere"}),
        422,
        (
            "there is no queue 'nowhere' (known: task/echo, task/fail, task/hang, task/hello, "
            "task/nightly, task/typed)"
        ),
    ),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        options(tags=["t"] * 11),
        422,
        "11 tags for task 'echo'; limits.tags = 10",
    ),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        options(debounce={"key": "k", "delay": "1s"}),
        422,
        "debounce is not supported here: use an idempotencyKey with a TTL",
    ),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        {"payload": "{", "options": {"payloadType": "application/super+json"}},
        400,
        "payload is no SuperJSON text",
    ),
    (
        "POST",
        "/api/v1/tasks/echo/trigger",
        {"payload": "x", "options": {"payloadType": "application/xml"}},
        400,
        (
            "payloadType 'application/xml' is not supported; it must be application/json, "
            "application/super+json or text/plain"
        ),
    ),
    (
        "POST",
        "/api/v1/tasks/typed/trigger",
        {"payload": "no number"},
        422,
        "task 'typed' cannot take this payload: Expected `int`, got `str`; got \"no number\"",
    ),
    ("GET", "/api/v3/runs/run_unknown", None, 404, "Not found"),
    ("POST", "/api/v2/runs/run_unknown/cancel", None, 404, "Run not found"),
    ("POST", "/api/v1/runs/run_unknown/replay", None, 404, "Run not found"),
    (
        "GET",
        "/api/v1/runs/run_unknown/result",
        None,
        404,
        "Run either doesn't exist or is not finished",
    ),
    ("PUT", "/api/v1/runs/run_unknown/metadata", {"metadata": {}}, 404, "Run not found"),
    ("POST", "/api/v3/batches/batch_unknown/items", b"{}", 404, "Resource not found"),
    (
        "POST",
        "/api/v3/batches",
        {"runCount": 0},
        400,
        "Validation error: Expected `int` >= 1 - at `$.runCount`",
    ),
    (
        "POST",
        "/api/v3/batches",
        {"runCount": 100_001},
        422,
        "Batch size of 100001 is too large; at most 100000",
    ),
    (
        "POST",
        "/api/v2/tasks/batch",
        {"items": [{"task": "echo"}] * 501},
        413,
        "a batch of 501 runs; limits.batch = 500",
    ),
    ("GET", "/api/v1/tasks/echo/trigger", None, 405, "Method not allowed"),
    ("DELETE", "/api/v1/runs", None, 405, "Method not allowed"),
    ("GET", "/api/v1/runs/run_1/trace", None, 404, "Not found"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "text"), BAD)
def test_bad_requests(
    client: httpx.Client, method: str, path: str, body: Any, status: int, text: str
) -> None:
    """What cannot be done is refused with a status, and words that say why."""
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
    answer = client.request(method, path, content=content)

    assert (answer.status_code, answer.json()["error"]) == (status, text)


@pytest.mark.parametrize(
    ("query", "details"),
    [
        ("page[size]=0", "page[size] must be from 1 to 100"),
        (
            "page[after]=a&page[before]=b",
            "Cannot pass both page[after] and page[before] on the same request",
        ),
        ("filter[version]=1", "filter[version] is not supported here"),
        (
            "filter[createdAt][period]=ever",
            "filter[createdAt][period] must be like 30s, 1m, 2h, 3d, 4w",
        ),
        ("filter[createdAt][from]=then", "filter[createdAt][from] must be a date or milliseconds"),
        (
            "filter[status]=DONE",
            (
                "filter[status] must be of CANCELED, COMPLETED, CRASHED, DELAYED, DEQUEUED, "
                "EXECUTING, EXPIRED, FAILED, PENDING_VERSION, QUEUED, SYSTEM_FAILURE, TIMED_OUT, "
                "WAITING, not DONE"
            ),
        ),
    ],
)
def test_bad_lists(client: httpx.Client, query: str, details: str) -> None:
    """A list's query that means nothing is refused, and says what would."""
    answer = client.get(f"/api/v1/runs?{query}")

    assert answer.status_code == 400
    assert answer.json() == {"error": "Query Error", "details": details}


def trigger(client: httpx.Client, task: str, **facts: Any) -> str:
    answer = client.post(f"/api/v1/tasks/{task}/trigger", json=facts)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_without_a_key(runtime: RuntimeProcess) -> None:
    """Nobody does anything without a key, or with a token for something else."""
    with httpx.Client(base_url=runtime.url, timeout=30) as client:
        nobody = client.post("/api/v1/tasks/echo/trigger", json={})
        client.headers.update(bearer(runtime.secret_key, "read:tasks:fail"))
        other = [
            client.post("/api/v1/tasks/echo/trigger", json={}),
            client.get("/api/v1/runs"),
            client.get("/api/v1/runs?filter[taskIdentifier]=echo"),
            client.post("/api/v2/runs/run_1/cancel"),
        ]
        own = client.get("/api/v1/runs?filter[taskIdentifier]=fail")

    assert (nobody.status_code, nobody.json()) == (401, {"error": "Invalid or Missing API key"})
    assert [answer.status_code for answer in other] == [403] * 4
    assert own.status_code == 200


def test_a_one_time_token_is_good_for_one_run(runtime: RuntimeProcess) -> None:
    """Whatever key and time it asks for, it triggers once; nothing that has many runs takes it."""
    token = bearer(runtime.secret_key, "write:tasks:echo", "write:batch", "write:runs", otu=True)
    asked = {"options": {"idempotencyKey": "k", "idempotencyKeyTTL": "0s"}}
    with httpx.Client(base_url=runtime.url, timeout=30, headers=token) as client:
        run_id = trigger(client, "echo", **asked)
        refused = [
            client.post("/api/v1/tasks/echo/trigger", json=asked),
            client.post(f"/api/v1/runs/{run_id}/replay"),
            client.post("/api/v3/batches", json={"runCount": 2}),
            client.post("/api/v3/batches/batch_x/items", content=b"{}"),
        ]

    assert [answer.status_code for answer in refused] == [422, 403, 403, 403]


FAMILY = """
import asyncio

from td_worker import tasks

async def parent(payload):
    return (await tasks.trigger("child", delay=3600)).id

async def child(payload):
    pass
"""


def test_metadata_of_a_parent_needs_its_own_scope(tmp_path: Path) -> None:
    """A token for a run changes its metadata alone, and not those of the runs above it."""
    operations = [{"type": "set", "key": "a", "value": 1}]
    with RuntimeProcess(tmp_path, tasks=FAMILY, workers=1, drain_timeout="0s") as runtime:
        headers = {"authorization": f"Bearer {runtime.secret_key}"}
        with httpx.Client(base_url=runtime.url, headers=headers, timeout=30) as client:
            parent_id = trigger(client, "parent")
            child_id = json.loads(runtime.result(parent_id).output or b"")
            path = f"/api/v1/runs/{child_id}/metadata"
            client.headers.update(bearer(runtime.secret_key, f"write:runs:{child_id}"))
            refused = [
                client.put(path, json={"operations": operations, f"{who}Operations": operations})
                for who in ("parent", "root")
            ]
            own = client.put(path, json={"operations": operations})
            client.headers.update(headers)
            above = client.get(f"/api/v1/runs/{parent_id}/metadata")

    assert [answer.status_code for answer in refused] == [403, 403]
    assert own.json() == {"metadata": {"a": 1}}
    assert above.json() == {"metadata": {}}


def test_metadata(client: httpx.Client) -> None:
    """Changes of metadata are made one after the other, and shown; a finished run has its own."""
    run_id = trigger(client, "echo", options={"delay": "1h", "metadata": {"n": 1}})
    operations = [
        {"type": "increment", "key": "n", "value": 2},
        {"type": "append", "key": "log", "value": "a"},
        {"type": "append", "key": "log", "value": "b"},
        {"type": "remove", "key": "log", "value": "a"},
        {"type": "set", "key": "$.deep.er", "value": True},
        {"type": "delete", "key": "none"},
    ]
    changed = client.put(f"/api/v1/runs/{run_id}/metadata", json={"operations": operations})

    assert changed.json() == {"metadata": {"n": 3, "log": ["b"], "deep": {"er": True}}}
    assert client.get(f"/api/v1/runs/{run_id}/metadata").json() == changed.json()
    client.post(f"/api/v2/runs/{run_id}/cancel")
    late = client.put(f"/api/v1/runs/{run_id}/metadata", json={"metadata": {}})
    assert (late.status_code, late.json()) == (
        422,
        {"error": "Cannot update metadata for a completed run"},
    )


def test_results(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """An outcome is shown as a parent would get it."""
    done, failed = trigger(client, "echo", payload=[1]), trigger(client, "fail")
    runtime.result(done)
    runtime.result(failed)
    good, bad = (client.get(f"/api/v1/runs/{one}/result").json() for one in (done, failed))

    assert (good["ok"], good["output"], good["outputType"]) == (True, "[1]", "application/json")
    assert (bad["ok"], bad["error"]["type"], bad["error"]["name"]) == (
        False,
        "BUILT_IN_ERROR",
        "ValueError",
    )
    assert bad["error"]["message"] == "no"


def test_a_batch_of_lines_is_known_when_it_comes_again(client: httpx.Client) -> None:
    """Lines that come twice make one run each; the batch is sealed when all are there."""
    made = client.post("/api/v3/batches", json={"runCount": 3}).json()
    lines = [json.dumps({"index": n, "task": "echo", "payload": n}) for n in range(3)]
    path = f"/api/v3/batches/{made['id']}/items"
    first = client.post(path, content="\n".join(lines[:2]) + "\n").json()
    second = client.post(path, content="\n".join(lines)).json()
    runs = client.get(f"/api/v2/batches/{made['id']}").json()["runs"]

    assert (first["itemsAccepted"], first["sealed"], first["enqueuedCount"]) == (2, False, 2)
    assert (second["itemsAccepted"], second["itemsDeduplicated"], second["sealed"]) == (1, 2, True)
    assert len(set(runs)) == 3


def test_a_batch_key_gives_the_batch_that_is_there(client: httpx.Client) -> None:
    """Of two batches with one key the second is the first."""
    body = {"runCount": 1, "idempotencyKey": "batch key"}
    first, second = (client.post("/api/v3/batches", json=body).json() for _ in range(2))

    assert first["id"] == second["id"]
    assert (first["isCached"], second["isCached"]) == (False, True)


def test_a_full_queue_is_429(client: httpx.Client) -> None:
    """When there is no room clients are told when to ask again, and what is there stays."""
    items = [{"task": "echo", "options": {"delay": "1h", "tags": "filler"}}] * 400
    answers = [client.post("/api/v2/tasks/batch", json={"items": items}) for _ in range(3)]
    full = answers[-1]

    assert full.status_code == 429
    assert full.json() == {"error": "the queue is full; limits.max_queued = 1000"}
    assert full.headers["retry-after"] == "1"
    assert full.headers["x-ratelimit-remaining"] == "0"
    assert int(full.headers["x-ratelimit-reset"]) > time.time() * 1000
    for answer in answers[:-1]:
        for run in answer.json()["runs"]:
            client.post(f"/api/v2/runs/{run['id']}/cancel")
    assert trigger(client, "echo").startswith("run_")


def test_health(runtime: RuntimeProcess) -> None:
    """It is live and ready without a key."""
    answers = [httpx.get(runtime.url + path) for path in ("/livez", "/readyz", "/healthz")]

    assert [(a.status_code, a.json()) for a in answers] == [(200, {"ok": True})] * 3
