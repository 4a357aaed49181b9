"""Payloads that are sent ahead: who may, what becomes of them, and what names none."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from td_runtime.control_messages import Accepted
from td_runtime.gateway.errors import StoreUnavailableError
from td_runtime.gateway.exchange import Exchange, Reply
from td_runtime.gateway.platform import Platform, upload_routes
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.batch_routes import BatchRoutes
from td_runtime.gateway.platform.run_batches import RunBatches
from td_runtime.gateway.platform.run_routes import RunRoutes
from td_runtime.gateway.platform.storage import Storage
from td_runtime.gateway.platform.upload_routes import UploadRoutes
from td_runtime.gateway.platform.uploads import KEPT_S, Upload, Uploads, new_upload_id
from td_worker.messages import TriggerItem

SUPER = '{"json": {"big": "7"}, "meta": {"values": {"big": ["bigint"]}}}'


class Link:
    """A supervisor that takes everything; ``groups`` is what it was asked for at once."""

    def __init__(self) -> None:
        self.groups: list[list[TriggerItem]] = []

    async def trigger(self, items: list[TriggerItem]) -> Accepted:
        self.groups.append(items)
        taken = sum(map(len, self.groups))
        run_ids = [f"run_{taken}_{n}" for n in range(len(items))]
        return Accepted(run_ids=run_ids, created=[True] * len(items))


class Client:
    """A client of one gateway, with its key."""

    def __init__(self, folder: Path, storage: Storage, *, key: str = "key") -> None:
        self.uploads = Uploads(folder / "uploads")
        self.link = link = cast("Any", Link())
        access, batches = Access(key), RunBatches(storage)
        self._key = key
        self.routes = UploadRoutes(access=access, uploads=self.uploads)
        self.batches = batches
        self._runs = RunRoutes(
            access=access,
            store=folder / "runs.db",
            link=link,
            batches=batches,
            uploads=self.uploads,
        )
        self._batch_routes = BatchRoutes(
            access=access,
            link=link,
            batches=batches,
            runs=self._runs,
            uploads=self.uploads,
        )

    def allow(self) -> dict[str, str]:
        allowed: dict[str, str] = read(self.routes.allow(self._request("PUT")))
        return allowed

    async def put(self, url: str, text: str, encoding: str = "text/plain") -> Reply:
        parts = urlsplit(url)
        request = make_request(
            "PUT", text.encode(), query=parts.query, headers={"content-type": encoding}
        )
        return await self.routes.receive(request, parts.path.rpartition("/")[2])

    async def upload(self, text: str, encoding: str = "text/plain") -> str:
        allowed = self.allow()
        assert (await self.put(allowed["presignedUrl"], text, encoding)).status == 200
        return allowed["storagePath"]

    async def trigger(self, reference: object) -> Reply:
        body = {"payload": reference, "options": {"payloadType": "application/store"}}
        return await self._runs.trigger(self._request("POST", json.dumps(body)), "a")

    async def trigger_batch(self, references: list[str]) -> Reply:
        body = {"items": [make_line(0, reference) for reference in references]}
        return await self._batch_routes.trigger(self._request("POST", json.dumps(body)))

    async def add_items(self, batch_id: str, *lines: dict[str, Any]) -> Reply:
        text = "\n".join(map(json.dumps, lines))
        return await self._batch_routes.add_items(self._request("POST", text), batch_id)

    def payloads(self) -> list[object]:
        return [json.loads(item.payload) for group in self.link.groups for item in group]

    def _request(self, method: str, text: str = "") -> Exchange:
        return make_request(method, text.encode(), headers={"authorization": f"Bearer {self._key}"})


def make_request(method: str, body: bytes, *, headers: dict[str, str], query: str = "") -> Exchange:
    headers = {"host": "localhost:1234", "content-length": str(len(body)), **headers}
    scope = {
        "method": method,
        "raw_path": b"/",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Exchange(scope, receive, None)  # type: ignore[arg-type]


def make_line(index: int, reference: str) -> dict[str, Any]:
    options = {"payloadType": "application/store"}
    return {"index": index, "task": "a", "payload": reference, "options": options}


def read(reply: Reply) -> Any:
    return json.loads(reply.body)


@pytest.fixture(name="client")
def _client(tmp_path: Path, storage: Storage) -> Client:
    return Client(tmp_path, storage)


async def test_the_content_takes_the_place_of_the_reference(client: Client) -> None:
    """Whatever it is encoded as, the supervisor gets plain JSON; a text stays one text."""
    for text, encoding in (
        ("a\nb", "text/plain; charset=utf-8"),
        (
            '{"json": {"big": "7"}, "meta": {"values": {"big": ["bigint"]}}}',
            "application/super+json",
        ),
        ("[1, 2]", "application/json"),
    ):
        await client.trigger(await client.upload(text, encoding))

    assert client.payloads() == ["a\nb", {"big": 7}, [1, 2]]


async def test_a_reference_serves_again_for_a_while(client: Client) -> None:
    """A client that did not hear of its run asks a second time, with the same words."""
    reference = await client.upload("x")
    await client.trigger(reference)
    await client.trigger(reference)

    assert client.payloads() == ["x", "x"]


@pytest.mark.parametrize(
    "reference",
    [
        "uploads/" + new_upload_id(),
        "uploads/../secret",
        "uploads/",
        "s3://bucket/payload.json",
        "",
        None,
        {"a": 1},
    ],
    ids=["never handed out", "up a folder", "of nothing", "a URL", "empty", "null", "no text"],
)
async def test_a_reference_to_nothing_is_refused(client: Client, reference: object) -> None:
    """Unknown, bent, or of a real object store: the client hears what to do instead."""
    with pytest.raises(RefusalError) as refused:
        await client.trigger(reference)

    assert refused.value.reply.status == 422
    assert "trigger again with the payload itself" in read(refused.value.reply)["error"]
    assert client.link.groups == []


async def test_another_gateways_reference_is_refused(
    client: Client, tmp_path: Path, storage: Storage
) -> None:
    """Uploads belong to the data folder that they came to."""
    other = Client(tmp_path / "other", storage)
    reference = await client.upload("x")
    with pytest.raises(RefusalError) as refused:
        await other.trigger(reference)

    assert refused.value.reply.status == 422


async def test_a_url_is_good_for_its_own_upload_alone(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another id, another time, another key, or a time that has passed: 403, and nothing stored."""
    url = client.allow()["presignedUrl"]
    other = re.sub(r"uploads/[^?]+", "uploads/" + new_upload_id(), url)
    later = re.sub(r"expires=\d", "expires=9", url)
    monkeypatch.setattr(upload_routes, "URL_LIFE_S", -1)
    over = client.allow()["presignedUrl"]
    bent = [
        other,
        later,
        over,
        url[:-1],
        url.partition("?")[0],
        url.replace("expires=", "expires=x"),
    ]
    replies = [await client.put(one, "x") for one in bent]

    assert [reply.status for reply in replies] == [403] * len(bent)
    assert (await client.put(url, "x")).status == 200


async def test_a_url_names_the_host_that_the_client_knows(client: Client) -> None:
    """It asked there, so it can send there; and the URL holds no key."""
    url = client.allow()["presignedUrl"]

    assert url.startswith("http://localhost:1234/api/v1/uploads/")
    assert "key" not in url


async def test_uploads_are_checked(client: Client) -> None:
    """A body that is no text, too long, or of another kind is refused where it is sent."""
    url = client.allow()["presignedUrl"]
    parts = urlsplit(url)
    id_ = parts.path.rpartition("/")[2]
    typed = {"content-type": "text/plain"}
    large = make_request("PUT", b"x" * (16 * 1024**2 + 1), query=parts.query, headers=typed)
    binary = make_request("PUT", b"\xff", query=parts.query, headers=typed)

    assert (await client.put(url, "x", "image/png")).status == 415
    assert (await client.routes.receive(large, id_)).status == 413
    assert (await client.routes.receive(binary, id_)).status == 400


async def test_json_that_is_none_is_refused_with_its_run(client: Client) -> None:
    """It was stored as it came; the request for the run says what is wrong with it."""
    reference = await client.upload("[1", "application/json")
    with pytest.raises(RefusalError) as refused:
        await client.trigger(reference)

    assert refused.value.reply.status == 400


async def test_batches_go_to_the_supervisor_in_pieces_that_it_takes(client: Client) -> None:
    """Large lines go alone, small ones together, all in their order."""
    batch, _ = await client.batches.create(4, None)
    large = [await client.upload(each * 3 * 1024**2) for each in "ab"]
    lines = [{"index": 0, "task": "a", "payload": 0}, *map(make_line, [1, 2], large)]
    await client.add_items(batch.id, *lines, {"index": 3, "task": "a", "payload": 3})
    lengths = [len(str(payload)) for payload in client.payloads()]

    assert lengths == [1, 3 * 1024**2, 3 * 1024**2, 1]
    assert [len(group) for group in client.link.groups] == [2, 2]


async def test_one_request_holds_no_more_than_a_body_may(client: Client) -> None:
    """References are short: many of them in one batch must not fill the memory."""
    reference = await client.upload("x" * 6 * 1024**2)
    with pytest.raises(RefusalError) as refused:
        await client.trigger_batch([reference] * 3)

    assert refused.value.reply.status == 413
    assert (await client.trigger_batch([reference] * 2)).status == 202


async def test_what_no_run_came_for_goes(tmp_path: Path) -> None:
    """After an hour, with parts that a dying gateway has left; what is newer stays."""
    uploads = Uploads(tmp_path / "uploads")
    await uploads.forget_old()  # there is no folder yet
    old, new = new_upload_id(), new_upload_id()
    for id_ in (old, new):
        await uploads.store(id_, Upload("text/plain", "x"))
    part = tmp_path / "uploads" / f"{old}.part"
    part.touch()
    before = time.time() - KEPT_S - 1
    for path in (part, part.with_name(old)):
        os.utime(path, (before, before))
    await uploads.forget_old()

    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [new]
    assert await uploads.load(old) is None


async def test_what_fills_the_disk_goes_though_the_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the file's own rows deleted first, a disk full of uploads would stay full for ever."""

    async def refuse() -> None:
        raise StoreUnavailableError("the disk is full")

    platform = Platform.open(str(tmp_path))
    id_ = new_upload_id()
    await platform.uploads.store(id_, Upload("text/plain", "x"))
    os.utime(tmp_path / "uploads" / id_, (0, 0))
    monkeypatch.setattr(platform.tokens, "forget_expired", refuse)
    with pytest.raises(StoreUnavailableError, match="full"):
        await platform.expire()
    platform.close()

    assert await platform.uploads.load(id_) is None


async def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """The gateway goes on without: what else is old is deleted all the same."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        await Uploads(tmp_path / "file").forget_old()


async def test_an_upload_is_private_and_whole(tmp_path: Path) -> None:
    """Others on the machine cannot read it, and a write that fails leaves nothing."""
    uploads = Uploads(tmp_path / "uploads")
    id_ = new_upload_id()
    await uploads.store(id_, Upload("text/plain", "x"))
    modes = [(tmp_path / "uploads" / name).stat().st_mode & 0o777 for name in ("", id_)]
    (tmp_path / "file").touch()

    assert modes == [0o700, 0o600]
    with pytest.raises(StoreUnavailableError, match="cannot be stored"):
        await Uploads(tmp_path / "file").store(id_, Upload("text/plain", "x"))
