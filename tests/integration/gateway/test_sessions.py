"""Sessions with a real supervisor, since every session is started with a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.integration.gateway.public_tokens import bearer
from tests.runtime_process import RuntimeProcess

TASKS = """
import asyncio

async def agent(payload):
    if payload.get("stay") or (payload.get("stay later") and payload.get("continuation")):
        await asyncio.Event().wait()
    return payload

async def other(payload):
    return payload
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("runtime")
    with RuntimeProcess(folder, tasks=TASKS, workers=1, drain_timeout="0s") as process:
        yield process


@pytest.fixture(scope="module")
def client(runtime: RuntimeProcess) -> Iterator[httpx.Client]:
    with owner(runtime) as http:
        yield http


def owner(runtime: RuntimeProcess) -> httpx.Client:
    """A client with the secret key."""
    headers = {"authorization": f"Bearer {runtime.secret_key}"}
    return httpx.Client(base_url=runtime.url, headers=headers, timeout=30)


def body(external_id: str | None = None, **more: Any) -> dict[str, Any]:
    config = {"basePayload": {"chatId": external_id, **more.pop("payload", {})}}
    config.update(more.pop("config", {}))
    named = {} if external_id is None else {"externalId": external_id}
    return {
        "type": "chat.agent",
        "taskIdentifier": "agent",
        "triggerConfig": config,
        **named,
        **more,
    }


def start(client: httpx.Client, external_id: str | None = None, **more: Any) -> dict[str, Any]:
    answer = client.post("/api/v1/sessions", json=body(external_id, **more))
    assert answer.status_code in (200, 201), answer.text
    document: dict[str, Any] = answer.json()
    return document


def path(session: str, tail: str = "") -> str:
    return f"/api/v1/sessions/{quote(session, safe='')}{tail}"


def channel(session: str, tail: str) -> str:
    return f"/realtime/v1/sessions/{quote(session, safe='')}/{tail}"


def append(client: httpx.Client, session: str, text: str = "{}") -> httpx.Response:
    return client.post(channel(session, "in/append"), content=text.encode())


def retrieve(client: httpx.Client, session: str) -> dict[str, Any]:
    document: dict[str, Any] = client.get(path(session)).json()
    return document


# ---------------------------------------------------------------- start


def test_a_session_starts_with_a_run(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """POST answers 201 with the session, its first run and a token; the run knows its session."""
    answer = client.post(
        "/api/v1/sessions",
        json=body(
            "first",
            payload={"message": 1},
            config={"idleTimeoutInSeconds": 7, "queue": "q", "unknown": 1},
            tags=["a", "b"],
            metadata={"k": [1]},
            expiresAt="2100-01-01T00:00:00Z",
        ),
    )
    document = answer.json()
    run_id = document["runId"]

    assert answer.status_code == 201
    assert runtime.output(run_id) == {
        "chatId": "first",
        "message": 1,
        "idleTimeoutInSeconds": 7,
        "sessionId": document["id"],
    }
    token = document.pop("publicAccessToken")
    assert token.count(".") == 2
    assert document.pop("createdAt")[-1] == document.pop("updatedAt")[-1] == "Z"
    assert document.pop("id").startswith("session_")
    assert document == {
        "externalId": "first",
        "type": "chat.agent",
        "taskIdentifier": "agent",
        "triggerConfig": {
            "basePayload": {"chatId": "first", "message": 1},
            "idleTimeoutInSeconds": 7,
            "queue": "q",
        },
        "currentRunId": run_id,
        "runId": run_id,
        "isCached": False,
        "tags": ["a", "b"],
        "metadata": {"k": [1]},
        "closedAt": None,
        "closedReason": None,
        "expiresAt": "2100-01-01T00:00:00.000Z",
    }


def test_the_token_is_for_this_session(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """The token reads and writes its session by either id, and no other one."""
    mine, other = start(client, "token-mine"), start(client, "token-other")
    headers = {"authorization": f"Bearer {mine['publicAccessToken']}"}

    with httpx.Client(base_url=runtime.url, headers=headers, timeout=30) as page:
        reads = [page.get(path(s)) for s in (mine["id"], "token-mine", other["id"], "token-other")]
        writes = [append(page, s) for s in (mine["id"], "token-mine", other["id"])]
        refused = [
            page.patch(path(mine["id"]), json={"tags": []}),
            page.post(path(mine["id"], "/close"), json={}),
            page.get("/api/v1/sessions"),
            page.post("/api/v1/sessions", json=body("token-mine")),
            page.get(path(mine["id"], "/snapshot-url")),
        ]

    assert [a.status_code for a in reads] == [200, 200, 403, 403]
    assert [a.status_code for a in writes] == [200, 200, 403]
    assert [a.status_code for a in refused] == [403] * 5


def test_a_token_takes_over_no_session_of_another_task(
    runtime: RuntimeProcess, client: httpx.Client
) -> None:
    """Who may start sessions of one task gets no token for another's, and changes nothing of it."""
    start(client, "others", payload={"mine": True})

    answer = httpx.post(
        f"{runtime.url}/api/v1/sessions",
        json=body("others", taskIdentifier="other"),
        headers=bearer(runtime.secret_key, "write:tasks:other"),
        timeout=30,
    )

    assert answer.status_code == 403
    assert client.get(path("others")).json()["triggerConfig"]["basePayload"]["mine"] is True


def test_a_one_time_token_starts_no_session(runtime: RuntimeProcess) -> None:
    """It is good for one run, and a session has any number of them."""
    answer = httpx.post(
        f"{runtime.url}/api/v1/sessions",
        json=body(),
        headers=bearer(runtime.secret_key, "write:tasks:agent", otu=True),
        timeout=30,
    )

    assert answer.status_code == 403


def test_an_external_id_starts_one_session(client: httpx.Client) -> None:
    """The same external id is the same session, 200; only its trigger config is refreshed."""
    first = start(client, " reused ", payload={"stay": True}, tags=["old"], metadata={"v": 1})

    answer = client.post(
        "/api/v1/sessions",
        json=body("reused", payload={"v": 2}, tags=["new"], metadata={"v": 2}, type="x"),
    )
    second = answer.json()

    assert (answer.status_code, second["isCached"]) == (200, True)
    assert (second["id"], second["runId"]) == (first["id"], first["runId"])
    assert (second["tags"], second["metadata"], second["type"]) == (["old"], {"v": 1}, "chat.agent")
    assert second["triggerConfig"] == {"basePayload": {"chatId": "reused", "v": 2}}


def test_sessions_without_an_external_id_are_many(client: httpx.Client) -> None:
    """Without an external id every start is a session, and its own id is its streams' name."""
    first, second = start(client), start(client)
    answer = client.put(channel(first["id"], "out"))

    assert first["id"] != second["id"]
    assert answer.headers["x-s2-stream-name"] == f"sessions/{first['id']}/out"


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("write:tasks:agent", 201),
        ("write:sessions", 201),
        ("write:tasks:other", 403),
        ("read:sessions", 403),
        ("write:sessions:scoped", 403),
    ],
)
def test_who_may_start_a_session(runtime: RuntimeProcess, scope: str, status: int) -> None:
    """A page may start sessions of a task it has a token for, or of all."""
    answer = httpx.post(
        f"{runtime.url}/api/v1/sessions",
        json=body(),
        headers=bearer(runtime.secret_key, scope),
        timeout=30,
    )

    assert answer.status_code == status, answer.text


BAD = {
    "no type": {"type": ""},
    "long type": {"type": "x" * 65},
    "no task": {"taskIdentifier": ""},
    "long task": {"taskIdentifier": "x" * 129},
    "reserved id": {"externalId": "session_x"},
    "reserved id behind blanks": {"externalId": " session_x"},
    "blank id": {"externalId": "  "},
    "long id": {"externalId": "x" * 257},
    "no config": {"triggerConfig": None},
    "no payload": {"triggerConfig": {}},
    "payload no object": {"triggerConfig": {"basePayload": [1]}},
    "long queue": {"triggerConfig": {"basePayload": {}, "queue": "x" * 129}},
    "many config tags": {"triggerConfig": {"basePayload": {}, "tags": ["x"] * 11}},
    "long config tag": {"triggerConfig": {"basePayload": {}, "tags": ["x" * 129]}},
    "no attempts": {"triggerConfig": {"basePayload": {}, "maxAttempts": 0}},
    "many attempts": {"triggerConfig": {"basePayload": {}, "maxAttempts": 11}},
    "no idle time-out": {"triggerConfig": {"basePayload": {}, "idleTimeoutInSeconds": 0}},
    "long idle time-out": {"triggerConfig": {"basePayload": {}, "idleTimeoutInSeconds": 3601}},
    "many tags": {"tags": ["x"] * 11},
    "long tag": {"tags": ["x" * 129]},
    "metadata no object": {"metadata": [1]},
    "no date": {"expiresAt": "soon"},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused(client: httpx.Client, change: dict[str, Any]) -> None:
    """A body outside upstream's schema is 400 and says where; nothing is started."""
    answer = client.post("/api/v1/sessions", json={**body(), **change})

    assert answer.status_code == 400
    assert "Validation error" in answer.json()["error"]


def test_bodies_that_are_none(client: httpx.Client) -> None:
    """No body, no JSON, too large a body and one of unknown length have upstream's statuses."""
    large = body("large", metadata={"x": "x" * 33_000})
    answers = [
        client.post("/api/v1/sessions", content=b""),
        client.post("/api/v1/sessions", content=b"{"),
        client.post("/api/v1/sessions", json=large),
        client.post("/api/v1/sessions", content=iter([b"{}"])),
    ]

    assert [(a.status_code, a.json()["error"]) for a in answers] == [
        (400, "Request body is empty"),
        (400, "Invalid JSON"),
        (413, "Request body too large"),
        (413, "Request body too large"),
    ]


def test_the_largest_that_fits(client: httpx.Client) -> None:
    """Every bound of the schema itself is accepted, an expiry in milliseconds too."""
    document = start(
        client,
        "ü" * 256,
        config={"queue": "q" * 128, "tags": ["t" * 128] * 10, "maxAttempts": 10},
        type="t" * 64,
        tags=["t" * 128] * 10,
        expiresAt=4102444800000,
    )

    assert document["expiresAt"] == "2100-01-01T00:00:00.000Z"


def test_an_unknown_task_is_refused(client: httpx.Client) -> None:
    """The supervisor's refusal is 422 with its words, and no session stays behind."""
    answer = client.post("/api/v1/sessions", json={**body("nobody"), "taskIdentifier": "agnet"})

    assert answer.status_code == 422
    assert "did you mean 'agent'" in answer.json()["error"]
    assert client.get(path("nobody")).status_code == 404


# ---------------------------------------------------------------- list, update, close


def test_retrieve(client: httpx.Client) -> None:
    """Either id finds the session; an unknown one is 404 and not to be retried."""
    document = start(client, "either/way")

    assert retrieve(client, "either/way") == retrieve(client, document["id"])
    missing = [client.get(path(s)) for s in ("nowhere", "session_nowhere")]
    assert [(a.status_code, a.headers["x-should-retry"]) for a in missing] == [(404, "false")] * 2


def test_list_pages(client: httpx.Client) -> None:
    """A list is newest first; its cursors lead to every session once, there and back."""
    made = [start(client, tags=["paged"])["id"] for _ in range(5)][::-1]

    def page(**query: str) -> tuple[list[str], dict[str, str]]:
        answer = client.get(
            "/api/v1/sessions", params={"filter[tags]": "paged", "page[size]": "2", **query}
        ).json()
        return [one["id"] for one in answer["data"]], answer["pagination"]

    first, links = page()
    second, links_2 = page(**{"page[after]": links["next"]})
    third, links_3 = page(**{"page[after]": links_2["next"]})
    back, links_back = page(**{"page[before]": links_3["previous"]})
    front, links_front = page(**{"page[before]": links_back["previous"]})

    assert first + second + third == made
    assert (back, front) == (second, first)
    assert "previous" not in links
    assert "next" not in links_3
    assert "previous" not in links_front


def test_list_filters(client: httpx.Client) -> None:
    """Each filter restricts the list, a comma is an `or`, and several are an `and`."""
    tag = "filtered"
    a = start(client, "filter-a", tags=[tag, "red"], type="one")["id"]
    b = start(client, "filter-b", tags=[tag, "blue"], type="two", taskIdentifier="other")["id"]
    c = start(client, "filter-c", tags=[tag], expiresAt=int(time.time() * 1000) + 300_000)["id"]
    client.post(path(b, "/close"), json={})

    def found(**query: str) -> set[str]:
        params = {"filter[tags]": tag, **{f"filter[{k}]": v for k, v in query.items()}}
        answer = client.get("/api/v1/sessions", params=params)
        return {one["id"] for one in answer.json()["data"]}

    assert found() == {a, b, c}
    assert found(tags="red,blue") == {a, b}
    assert found(type="two") == {b}
    assert found(type="one,two", taskIdentifier="agent") == {a}
    assert found(externalId="filter-c") == {c}
    assert found(status="ACTIVE") == {a, c}
    assert found(status="CLOSED,EXPIRED") == {b}
    assert found(**{"createdAt][period": "1h"}) == {a, b, c}
    assert found(**{"createdAt][to": "1000"}) == set()
    assert found(**{"createdAt][from": "1000"}) == {a, b, c}


@pytest.mark.parametrize(
    "query",
    [
        "page[size]=0",
        "page[size]=101",
        "page[size]=x",
        "page[after]=a&page[before]=b",
        "filter[status]=OPEN",
        "filter[createdAt][period]=soon",
        "filter[createdAt][from]=x",
    ],
)
def test_a_bad_query_is_refused(client: httpx.Client, query: str) -> None:
    """A query outside upstream's schema is 400."""
    answer = client.get(f"/api/v1/sessions?{query}")

    assert (answer.status_code, answer.json()["error"]) == (400, "Query Error")


def test_update(client: httpx.Client) -> None:
    """PATCH changes tags and metadata, null clears; the external id stays what it is."""
    session = start(client, "patched", tags=["a"], metadata={"a": 1})["id"]

    tags = client.patch(path(session), json={"tags": ["b"]}).json()
    cleared = client.patch(path("patched"), json={"metadata": None}).json()
    same = client.patch(path(session), json={"externalId": "patched"})
    answers = [
        client.patch(path(session), json={"externalId": "another"}),
        client.patch(path(session), json={"externalId": None}),
        client.patch(path("nowhere"), json={}),
        client.patch(path(session), json={"tags": ["x"] * 11}),
        client.delete(path(session)),
    ]

    assert (tags["tags"], tags["metadata"]) == (["b"], {"a": 1})
    assert (cleared["tags"], cleared["metadata"]) == (["b"], None)
    assert (same.status_code, same.json()["externalId"]) == (200, "patched")
    assert [a.status_code for a in answers] == [422, 422, 404, 400, 405]


def test_close_is_final(client: httpx.Client) -> None:
    """A closed session stays as it was closed first, and takes nothing more on any channel."""
    session = start(client, "closed", payload={"stay": True})["id"]
    assert append(client, session).status_code == 200

    first = client.post(path("closed", "/close"), json={"reason": "done"}).json()
    second = client.post(path(session, "/close"), json={"reason": "again"}).json()
    put = client.put(channel(session, "out"))
    side = client.put(channel("closed", "channels/side/in"))
    refused = append(client, "closed")
    again = client.post("/api/v1/sessions", json=body("closed"))
    read = client.get(channel(session, "in/records"))

    assert first["closedReason"] == "done"
    assert second == first
    assert (put.status_code, put.text) == (400, "Cannot initialize a channel on a closed session")
    assert side.status_code == 400
    assert refused.status_code == 400
    assert refused.json()["error"] == "Cannot append to a closed session"
    assert (again.status_code, again.json()["code"]) == (409, "session_closed")
    assert len(read.json()["records"]) == 1


def test_closing(client: httpx.Client) -> None:
    """Closing an unknown session is 404, with too long a reason 400, with too large a body 413."""
    session = start(client)["id"]
    answers = [
        client.post(path("nowhere", "/close"), json={}),
        client.post(path(session, "/close"), json={"reason": "x" * 257}),
        client.post(path(session, "/close"), json={"reason": "x", "more": "x" * 1100}),
        client.get(path(session, "/close")),
    ]

    assert [a.status_code for a in answers] == [404, 400, 413, 405]


def test_an_expired_session_takes_nothing(client: httpx.Client) -> None:
    """A session past its time is refused like a closed one, in its own words."""
    refused = client.post("/api/v1/sessions", json=body("past", expiresAt=1000))
    taken = append(client, "past")

    assert (refused.status_code, refused.json()["code"]) == (409, "session_expired")
    assert (taken.status_code, taken.json()["error"]) == (
        400,
        "Cannot append to an expired session",
    )


def test_there_is_no_snapshot(client: httpx.Client) -> None:
    """Without an object store a snapshot's URL is 404 at once, which clients read as `none yet`."""
    session = start(client)["id"]
    answers = [
        client.get(path(session, "/snapshot-url")),
        client.put(path(session, "/snapshot-url")),
    ]

    assert [(a.status_code, a.headers["x-should-retry"]) for a in answers] == [(404, "false")] * 2


def test_what_goes_into_tokens(client: httpx.Client) -> None:
    """The claims for a token that the client signs itself are the environment's."""
    answer = client.post("/api/v1/auth/jwt/claims")

    assert answer.json() == {"sub": "env_embedded", "pub": True}


def test_unknown_paths(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """Paths that are no routes are 404 with a key and 401 without."""
    paths = ["/api/v1/nothing", "/api/v1/sessions/a/b/c", "/api/v1/sessions//close"]

    assert {client.get(p).status_code for p in paths} == {404}
    assert {httpx.get(runtime.url + p).status_code for p in paths} == {401}


# ---------------------------------------------------------------- runs


def test_both_ids_are_one_slot(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """PUTs by either id count for one slot and give one stream."""
    session = start(client, "two ids")["id"]
    names = {
        client.put(channel(s, "out")).headers["x-s2-stream-name"] for s in (session, "two ids")
    }

    assert names == {"sessions/two ids/out"}
    assert runtime.stats().puts["session/two%20ids/main/out"] == 2


def test_a_message_finds_the_live_run(client: httpx.Client) -> None:
    """While the session's run lives, an append starts no other."""
    session = start(client, "live", payload={"stay": True})
    appended = append(client, "live")

    assert appended.json() == {"ok": True, "seq": 0}
    assert retrieve(client, "live")["currentRunId"] == session["runId"]


def test_a_message_starts_a_continuation(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """After the run has ended, an append starts one that goes on from it, its opening cleared."""
    opening = {"message": 1, "messages": [1], "trigger": "submit-message"}
    session = start(client, "goes on", payload={**opening, "kept": 1})
    runtime.result(session["runId"])

    append(client, session["id"])

    following = retrieve(client, "goes on")["currentRunId"]
    assert runtime.output(following) == {
        "chatId": "goes on",
        "kept": 1,
        "sessionId": session["id"],
        "continuation": True,
        "previousRunId": session["runId"],
    }


def test_starting_again_starts_a_run(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """POST for a session whose run has ended starts the next one."""
    session = start(client, "again")
    runtime.result(session["runId"])

    again = start(client, "again")

    assert again["isCached"] is True
    assert runtime.output(again["runId"])["previousRunId"] == session["runId"]


def test_a_side_channel_starts_no_run(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """A record on a side channel, or on `out`, is no message to the agent."""
    session = start(client, "quiet")
    runtime.result(session["runId"])

    beside = client.post(channel("quiet", "channels/side/in/append"), content=b"{}")
    client.post(channel("quiet", "out/append"), content=b"{}")

    assert beside.status_code == 200
    assert retrieve(client, "quiet")["currentRunId"] == session["runId"]


def test_many_messages_start_one_run(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """Twenty appends at once after the end of a run start exactly one, and all are stored."""
    session = start(client, "crowd", payload={"stay later": True})
    runtime.result(session["runId"])

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: append(client, "crowd", str(n)), range(20)))

    assert {a.status_code for a in answers} == {200}
    assert sorted(a.json()["seq"] for a in answers) == list(range(20))
    current = retrieve(client, "crowd")["currentRunId"]
    runtime.event("run.accepted", run_id=current)
    since = [e["run_id"] for e in runtime.find("run.accepted", task="agent")]
    assert since[since.index(session["runId"]) + 1 :] == [current]


def test_many_starts_start_one_run(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """Twenty starts of one external id at once are one session with one run."""
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: start(client, "rush", payload={"stay": True}), range(20)))

    assert len({one["id"] for one in found}) == 1
    assert len({one["runId"] for one in found}) == 1
    assert [one["isCached"] for one in found].count(False) == 1


def test_end_and_continue(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """The session's run hands over to a new one, once; a run that is not it any more does not."""
    session = start(client, "handed", payload={"stay": True})
    ask = {"callingRunId": session["runId"], "reason": "upgrade"}
    client.post("/api/v1/sessions", json=body("handed"))

    first = client.post(path("handed", "/end-and-continue"), json=ask).json()
    second = client.post(path(session["id"], "/end-and-continue"), json=ask).json()
    refused = [
        client.post(path("nowhere", "/end-and-continue"), json=ask),
        client.post(path("handed", "/end-and-continue"), json={**ask, "callingRunId": "run_none"}),
        client.post(path("handed", "/end-and-continue"), json={**ask, "reason": "x" * 65}),
    ]

    assert first["swapped"] is True
    assert second == {"runId": first["runId"], "swapped": False}
    assert retrieve(client, "handed")["currentRunId"] == first["runId"]
    assert runtime.output(first["runId"])["previousRunId"] == session["runId"]
    assert [a.status_code for a in refused] == [404, 404, 400]


def test_run_that_ends_leaves_no_message(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """A message behind the cursor, or after the end was said, starts a run; others do not."""
    seen, unseen = (start(client, name, payload={"stay": True}) for name in ("seen", "unseen"))
    append(client, "seen")
    append(client, "unseen")

    def end(session: dict[str, Any], **more: Any) -> Any:
        ask = {"callingRunId": session["runId"], "reason": "max_turns", **more}
        return client.post(path(session["externalId"], "/end"), json=ask).json()

    assert end(seen, cursor=0) == {"runId": seen["runId"], "swapped": False}
    assert end(unseen)["swapped"] is True
    append(client, "unseen")
    append(client, "seen")

    for session in (seen, unseen):
        following = retrieve(client, session["id"])["currentRunId"]
        assert following != session["runId"]
        assert end(session, cursor=0) == {"runId": following, "swapped": False}


def test_only_the_secret_key_ends_a_run(runtime: RuntimeProcess, client: httpx.Client) -> None:
    """A client's token cannot make a session's run deaf."""
    session = start(client, "deaf", payload={"stay": True})
    ask = {"callingRunId": session["runId"], "reason": "x"}
    token = {"authorization": f"Bearer {session['publicAccessToken']}"}

    refused = httpx.post(f"{runtime.url}{path('deaf', '/end')}", json=ask, headers=token)

    assert refused.status_code in (401, 403)


# ---------------------------------------------------------------- without a supervisor


def test_without_a_supervisor(own_gateway: GatewayProcess) -> None:
    """A start is 503 and says what to do, and leaves nothing; an append is stored all the same."""
    answer = httpx.post(
        f"{own_gateway.url}/api/v1/sessions", json=body("alone"), headers=own_gateway.headers
    )
    found = httpx.get(own_gateway.url + path("alone"), headers=own_gateway.headers)
    stored = httpx.post(
        own_gateway.url + channel("alone", "in/append"), content=b"x", headers=own_gateway.headers
    )

    assert answer.status_code == 503
    assert "td-runtime start" in answer.json()["error"]
    assert found.status_code == 404
    assert stored.json() == {"ok": True, "seq": 0}


def test_a_message_is_stored_though_no_run_starts(tmp_path: Path) -> None:
    """When the session's task is gone, a message is accepted all the same, and a line says so."""
    with RuntimeProcess(tmp_path, tasks=TASKS, workers=1) as runtime, owner(runtime) as client:
        session = start(client, "kept")
        runtime.result(session["runId"])
    only_other = TASKS.replace("def agent", "def renamed")
    with RuntimeProcess(tmp_path, tasks=only_other, workers=1) as runtime, owner(runtime) as client:
        stored = append(client, "kept")
        line = runtime.event("session.run_failed")

    assert stored.json() == {"ok": True, "seq": 0}
    assert line["session_id"] == session["id"]
    assert "'agent'" in line["error"]


def test_sessions_outlive_the_gateway(tmp_path: Path) -> None:
    """After a restart a session is found with its records, and its next run goes on."""
    with RuntimeProcess(tmp_path, tasks=TASKS, workers=1) as runtime, owner(runtime) as client:
        session = start(client, "durable", tags=["t"])
        runtime.result(session["runId"])
        client.post(channel("durable", "out/append"), content=b"1")
    with RuntimeProcess(tmp_path, tasks=TASKS, workers=1) as runtime, owner(runtime) as client:
        assert retrieve(client, "durable")["tags"] == ["t"]
        append(client, "durable")
        following = retrieve(client, session["id"])["currentRunId"]
        assert runtime.output(following)["previousRunId"] == session["runId"]
        (record,) = client.get(channel("durable", "out/records")).json()["records"]

    assert record["data"] == "1"
