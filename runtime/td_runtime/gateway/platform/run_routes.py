"""Runs over HTTP: trigger, retrieve, list, cancel, replay, and their metadata."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec

from td_runtime.control_messages import (
    Accepted,
    AddTags,
    CanceledRuns,
    CancelRuns,
    Done,
    RescheduleRun,
    SetMetadata,
)
from td_runtime.gateway.exchange import Exchange, Reply, json_reply
from td_runtime.gateway.platform import answers, run_shapes
from td_runtime.gateway.platform.access import ENVIRONMENT, Access, Caller
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.bodies import read_json
from td_runtime.gateway.platform.references import resolve
from td_runtime.gateway.platform.run_batches import RunBatches
from td_runtime.gateway.platform.run_bodies import (
    ReplayBody,
    RescheduleBody,
    TagsBody,
    TriggerBody,
    unprocessable,
)
from td_runtime.gateway.platform.run_link import RunLink
from td_runtime.gateway.platform.run_lists import parse_list, read_page
from td_runtime.gateway.platform.run_metadata import MetadataBody, Operation, apply
from td_runtime.gateway.platform.uploads import Uploads
from td_runtime.replays import repeat
from td_runtime.store import RunQuery, RunReader, open_readonly
from td_runtime.store.records import Run, RunSummary, Status
from td_worker.messages import TriggerItem

TRIGGER_BYTES_MAX: Final = 16 * 1024 * 1024
METADATA_BYTES_MAX: Final = 1024 * 1024
SMALL_BYTES_MAX: Final = 64 * 1024
TOKEN_LIFE_S: Final = 3600.0
ONE_TIME_SLACK_S: Final = 60.0
ONE_TIME_LIFE_S_MAX: Final = 10 * 365 * 86_400.0
"""The longest that the store keeps a key."""
CHILDREN_MAX: Final = 100
DEPTH_MAX: Final = 100

_CLAIMS: Final = msgspec.json.encode({"sub": ENVIRONMENT, "pub": True}).decode()


class RunRoutes:
    """Answers requests about runs. Reads need no supervisor, changes do.

    Args:
        access: Who may do what.
        store: The run store's file.
        link: The supervisor.
        batches: Which runs were asked for together.
        uploads: Payloads that were sent ahead.
    """

    def __init__(
        self,
        *,
        access: Access,
        store: Path,
        link: RunLink,
        batches: RunBatches,
        uploads: Uploads,
    ) -> None:
        self._access = access
        self._store = store
        self._link = link
        self._batches = batches
        self._uploads = uploads
        self._reader: RunReader | None = None
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def trigger(self, exchange: Exchange, task: str) -> Reply:
        """POST tasks/<id>/trigger."""
        caller = self._access.identify(exchange)
        if exchange.method != "POST":
            return answers.method_not_allowed("POST")
        require_trigger(caller, [task])
        body = await read_json(exchange, TriggerBody, limit=TRIGGER_BYTES_MAX)
        await resolve(self._uploads, [body])
        item = body.to_item(task)
        if caller.is_one_time:
            item = _spend(item, caller, exchange.bearer)
        accepted = await self._link.trigger([item])
        run_id, created = accepted.run_ids[0], accepted.created[0]
        if caller.is_one_time and not created:
            raise unprocessable("One-time use token was used before")

        return json_reply(
            200, {"id": run_id, "isCached": not created}, self.token_headers(caller, "runs", run_id)
        )

    def token_headers(self, caller: Caller, resource: str, id_: str) -> list[tuple[str, str]]:
        """Return what a client makes the token from that it gives to a page.

        Whoever has the key signs one itself; whoever has only a token is given one.
        """
        if caller.is_secret:
            return [("x-trigger-jwt-claims", _CLAIMS)]
        token = self._access.issue([f"read:{resource}:{id_}"], life_s=TOKEN_LIFE_S)

        return [("x-trigger-jwt", token)]

    async def list_runs(self, exchange: Exchange) -> Reply:
        """GET runs."""
        caller = self._access.identify(exchange)
        if exchange.method != "GET":
            return answers.method_not_allowed("GET")
        query = parse_list(exchange.query)
        if not _may_list(caller, query.tags, query.base.tasks):
            raise RefusalError(answers.SCOPE_MISSING)
        reader = self.reader()
        if reader is None:
            return json_reply(200, {"data": [], "pagination": {}})
        page = await read_page(reader, query)
        cursors = {"next": page.following, "previous": page.previous}

        return json_reply(
            200,
            {
                "data": [run_shapes.show_listed(run) for run in page.runs],
                "pagination": {name: id_ for name, id_ in cursors.items() if id_ is not None},
            },
        )

    async def retrieve(self, exchange: Exchange, run_id: str) -> Reply:
        """GET runs/<id>."""
        if exchange.method != "GET":
            return answers.method_not_allowed("GET")
        run = await self._readable(exchange, run_id)

        return answers.NOT_FOUND if run is None else await self._show(run)

    async def result(self, exchange: Exchange, run_id: str) -> Reply:
        """GET runs/<id>/result."""
        if exchange.method != "GET":
            return answers.method_not_allowed("GET")
        run = await self._readable(exchange, run_id)
        if run is None or not run.status.is_finished:
            return json_reply(404, {"error": "Run either doesn't exist or is not finished"})

        return json_reply(200, run_shapes.show_result(run))

    async def cancel(self, exchange: Exchange, run_id: str) -> Reply:
        """POST runs/<id>/cancel; one that has ended stays as it is."""
        await self._changeable(exchange, run_id, "POST")
        answer = await self._link.ask(CancelRuns(run_ids=[run_id]), CanceledRuns)
        if answer.unknown:
            return json_reply(404, {"error": "Run not found"})

        return json_reply(200, {"id": run_id})

    async def replay(self, exchange: Exchange, run_id: str) -> Reply:
        """POST runs/<id>/replay."""
        run = await self._changeable(exchange, run_id, "POST")
        self._access.identify(exchange).refuse_one_time()
        if exchange.content_length:
            body = await read_json(exchange, ReplayBody, limit=TRIGGER_BYTES_MAX)
        else:
            body = ReplayBody()
        accepted: Accepted = await self._link.trigger([body.change(repeat(run))])

        return json_reply(200, {"id": accepted.run_ids[0]})

    async def reschedule(self, exchange: Exchange, run_id: str) -> Reply:
        """POST runs/<id>/reschedule; answers with the run as it is then."""
        run = await self._changeable_by_key(exchange, run_id)
        body = await read_json(exchange, RescheduleBody, limit=SMALL_BYTES_MAX)
        moment = body.to_moment()
        if run.status is not Status.DELAYED:
            return json_reply(400, {"error": "Cannot reschedule a run that is not delayed"})
        await self._link.ask(RescheduleRun(run_id=run.id, run_at=moment), Done)

        return await self._show(await self.find(run.id) or run)

    async def add_tags(self, exchange: Exchange, run_id: str) -> Reply:
        """POST runs/<id>/tags: further tags, whatever the run's status."""
        run = await self._changeable_by_key(exchange, run_id)
        body = await read_json(exchange, TagsBody, limit=SMALL_BYTES_MAX)
        tags = body.beyond(run.tags)
        if not tags:
            return json_reply(200, {"message": "No new tags to add"})
        await self._link.ask(AddTags(run_id=run.id, tags=tags), Done)

        return json_reply(200, {"message": f"Successfully set {len(tags)} new tags."})

    async def metadata(self, exchange: Exchange, run_id: str) -> Reply:
        """GET and PUT runs/<id>/metadata."""
        if exchange.method == "GET":
            run = await self._readable(exchange, run_id)
            if run is None:
                return answers.NOT_FOUND
            return json_reply(200, {"metadata": _metadata(run)})
        run = await self._changeable(exchange, run_id, "PUT")
        body = await read_json(exchange, MetadataBody, limit=METADATA_BYTES_MAX)
        if run.status.is_finished:
            raise unprocessable("Cannot update metadata for a completed run")
        parent_id = run.parent_id or run.id
        others = ((parent_id, body.parent_operations), (run.root_id, body.root_operations))
        caller = self._access.identify(exchange)
        for other_id, operations in others:
            if operations:
                caller.require("write", "runs", [other_id])
        metadata = await self._change(run.id, body.operations, body.metadata)
        for other_id, operations in others:
            if operations:
                await self._change(other_id, operations)

        return json_reply(200, {"metadata": metadata})

    def reader(self) -> RunReader | None:
        """The run store; None as long as there is none."""
        if self._reader is None and self._store.exists():
            self._reader = open_readonly(self._store)

        return self._reader

    async def find(self, run_id: str) -> Run | None:
        """The run with this id."""
        reader = self.reader()

        return None if reader is None else await reader.get(run_id)

    async def _readable(self, exchange: Exchange, run_id: str) -> Run | None:
        """Return a run that the caller may read."""
        caller = self._access.identify(exchange)
        run = await self.find(run_id)
        if not _may_read(caller, run_id, run, self._batches):
            raise RefusalError(answers.SCOPE_MISSING)

        return run

    async def _changeable(self, exchange: Exchange, run_id: str, method: str) -> Run:
        """Return a run that the caller may change."""
        caller = self._access.identify(exchange)
        if exchange.method != method:
            allow = "GET, PUT" if method == "PUT" else method
            raise RefusalError(answers.method_not_allowed(allow))
        caller.require("write", "runs", [run_id])
        run = await self.find(run_id)
        if run is None:
            raise RefusalError(json_reply(404, {"error": "Run not found"}))

        return run

    async def _changeable_by_key(self, exchange: Exchange, run_id: str) -> Run:
        """The same for what only the secret key may change: tags say who else may read a run."""
        self._access.identify(exchange).require_secret()

        return await self._changeable(exchange, run_id, "POST")

    async def _show(self, run: Run) -> Reply:
        depth, related = await self._relatives(run)
        batch_id = self._batches.batch_of(run.id)
        shown = run_shapes.show_retrieved(run, depth=depth, related=related, batch_id=batch_id)

        return json_reply(200, shown)

    async def _change(
        self, run_id: str, operations: list[Operation], metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Change a run's metadata; the changes of one run take turns, so that none is lost."""
        async with self._turns.setdefault(run_id, asyncio.Lock()):
            if metadata is None:
                run = await self.find(run_id)
                metadata = {} if run is None else _metadata(run)
            metadata = apply(metadata, operations)
            text = msgspec.json.encode(metadata)
            await self._link.ask(SetMetadata(run_id=run_id, metadata=text), Done)

        return metadata

    async def _relatives(self, run: Run) -> tuple[int, dict[str, Any]]:
        """Return how far below its root a run is, and its root, parent and children."""
        above: list[RunSummary] = []
        parent_id = run.parent_id
        while parent_id is not None and len(above) < DEPTH_MAX:
            parent = await self.find(parent_id)
            if parent is None:  # its time is over
                break
            above.append(parent)
            parent_id = parent.parent_id
        depth = len(above)
        related: dict[str, Any] = {}
        if above:
            related["parent"] = run_shapes.show_related(above[0], depth=depth - 1)
            related["root"] = run_shapes.show_related(above[-1], depth=0)
        reader = self.reader()
        assert reader is not None  # noqa: S101  the run was read by it
        below = await reader.find(RunQuery(parent_id=run.id, limit=CHILDREN_MAX))
        related["children"] = [run_shapes.show_related(one, depth=depth + 1) for one in below]

        return depth, related


def require_trigger(caller: Caller, tasks: list[str]) -> None:
    """Refuse with 403 whoever may not trigger all of these tasks."""
    for task in tasks:
        if not caller.may("trigger", "tasks", [task]):
            caller.require("write", "tasks", [task])


def _spend(item: TriggerItem, caller: Caller, token: str) -> TriggerItem:
    """Return *item* with a key that the store keeps longer than a one-time token is valid."""
    life = caller.expires_at - time.time() + ONE_TIME_SLACK_S

    return msgspec.structs.replace(
        item,
        idempotency_key="token/" + hashlib.sha256(token.encode()).hexdigest(),
        idempotency_ttl=min(life, ONE_TIME_LIFE_S_MAX),
    )


def _may_read(caller: Caller, run_id: str, run: Run | None, batches: RunBatches) -> bool:
    if caller.may("read", "runs", [run_id]):
        return True
    if run is None:
        return False
    if caller.may("read", "tasks", [run.task]) or caller.may("read", "tags", run.tags):
        return True
    batch_id = batches.batch_of(run_id)

    return batch_id is not None and caller.may("read", "batch", [batch_id])


def _may_list(caller: Caller, tags: tuple[str, ...], tasks: frozenset[str]) -> bool:
    """Whether a caller may see every run that such a list can hold."""
    if caller.may("read", "runs"):
        return True
    by_tag = bool(tags) and all(caller.may("read", "tags", [tag]) for tag in tags)

    return by_tag or (bool(tasks) and all(caller.may("read", "tasks", [task]) for task in tasks))


def _metadata(run: Run) -> dict[str, Any]:
    if run.metadata is None:
        return {}
    metadata = msgspec.json.decode(run.metadata)

    return metadata if isinstance(metadata, dict) else {}
