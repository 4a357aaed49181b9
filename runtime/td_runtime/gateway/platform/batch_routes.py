"""Batches over HTTP: runs asked for in one body, or as lines after the batch was made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from td_runtime.gateway.exchange import BODY_BYTES_MAX, Exchange, Reply, json_reply
from td_runtime.gateway.platform import answers, run_shapes
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.platform.answers import RefusalError
from td_runtime.gateway.platform.bodies import read_json
from td_runtime.gateway.platform.references import resolve
from td_runtime.gateway.platform.run_batches import Batch, RunBatches
from td_runtime.gateway.platform.run_bodies import (
    BatchBody,
    BatchItem,
    CreateBatch,
    unprocessable,
)
from td_runtime.gateway.platform.run_link import RunLink
from td_runtime.gateway.platform.run_routes import RunRoutes, require_trigger
from td_runtime.gateway.platform.uploads import Uploads
from td_runtime.store import Run
from td_worker.messages import TriggerItem

CREATE_BYTES_MAX: Final = 64 * 1024
RUNS_MAX: Final = 100_000
GROUP_RUNS: Final = 100
GROUP_BYTES: Final = 4 * 1024 * 1024
"""Lines are handed on in groups of at most as many, and as large but for a line that is larger."""
RESULTS_BYTES_MAX: Final = 64 * 1024 * 1024
TOO_MANY_RESULTS: Final = json_reply(
    413,
    {
        "error": f"The batch's outputs have more than {RESULTS_BYTES_MAX // 1024**2} MiB in all; "
        "ask for those of its runs one by one: GET /api/v1/runs/<run>/result"
    },
)


@dataclass(slots=True)
class _Group:
    """Lines of a batch that are handed on together."""

    items: list[TriggerItem] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    size: int = 0

    def add(self, index: int, item: TriggerItem) -> None:
        self.items.append(item)
        self.indexes.append(index)
        self.size += len(item.payload)

    def has_room(self, item: TriggerItem) -> bool:
        return len(self.items) < GROUP_RUNS and self.size + len(item.payload) <= GROUP_BYTES


class BatchRoutes:
    """Answers requests about batches.

    Args:
        access: Who may do what.
        link: The supervisor.
        batches: Where batches are stored.
        runs: Looks runs up.
        uploads: Payloads that were sent ahead.
    """

    def __init__(
        self,
        *,
        access: Access,
        link: RunLink,
        batches: RunBatches,
        runs: RunRoutes,
        uploads: Uploads,
    ) -> None:
        self._access = access
        self._link = link
        self._batches = batches
        self._runs = runs
        self._uploads = uploads

    async def trigger(self, exchange: Exchange) -> Reply:
        """POST tasks/batch: all of its runs are accepted, or none."""
        caller = self._access.identify(exchange)
        if exchange.method != "POST":
            return answers.method_not_allowed("POST")
        body = await read_json(exchange, BatchBody, limit=BODY_BYTES_MAX)
        require_trigger(caller, [item.task for item in body.items])
        caller.refuse_one_time()
        await resolve(self._uploads, body.items)
        # First, so that nothing is accepted that no batch can be made for: the client would retry.
        batch, _ = await self._batches.create(len(body.items), None)
        accepted = await self._link.trigger([item.to_item() for item in body.items])
        await self._batches.add(batch.id, dict(enumerate(accepted.run_ids)))
        answered = [
            {"id": run_id, "taskIdentifier": item.task, "isCached": not created}
            for run_id, created, item in zip(
                accepted.run_ids, accepted.created, body.items, strict=True
            )
        ]

        return json_reply(
            202,
            {
                "id": batch.id,
                "batchId": batch.id,
                "runCount": batch.run_count,
                "isCached": False,
                "runs": answered,
            },
            self._runs.token_headers(caller, "batch", batch.id),
        )

    async def create(self, exchange: Exchange) -> Reply:
        """POST batches: make one, to which lines are then added."""
        caller = self._access.identify(exchange)
        if exchange.method != "POST":
            return answers.method_not_allowed("POST")
        caller.require("write", "batch")
        caller.refuse_one_time()
        body = await read_json(exchange, CreateBatch, limit=CREATE_BYTES_MAX)
        if body.run_count > RUNS_MAX:
            raise unprocessable(f"Batch size of {body.run_count} is too large; at most {RUNS_MAX}")
        batch, is_cached = await self._batches.create(body.run_count, body.idempotency_key)
        document = {"id": batch.id, "runCount": batch.run_count, "isCached": is_cached}
        if batch.idempotency_key is not None:
            document["idempotencyKey"] = batch.idempotency_key

        return json_reply(202, document, self._runs.token_headers(caller, "batch", batch.id))

    async def add_items(self, exchange: Exchange, batch_id: str) -> Reply:
        """POST batches/<id>/items: lines of JSON, a run each; a line that comes again is known.

        A run is accepted once however often its line is sent: its index in the batch is part of
        its idempotency key, unless the line has a key of its own.
        """
        caller = self._access.identify(exchange)
        if exchange.method != "POST":
            return answers.method_not_allowed("POST")
        caller.require("write", "batch", [batch_id])
        caller.refuse_one_time()
        batch = self._require(batch_id)
        there = await self._batches.runs(batch_id)
        known, accepted, group = set(there), 0, _Group()
        twice = 0
        async for item in _read_lines(exchange):
            index = _check_index(item, batch)
            if index in known:
                twice += 1
                continue
            known.add(index)
            require_trigger(caller, [item.task])
            await resolve(self._uploads, [item])
            request = _with_key(item, batch, index)
            if not group.has_room(request):
                await self._hand_on(batch, group)
                group = _Group()
            group.add(index, request)
            accepted += 1
        await self._hand_on(batch, group)
        document = {
            "id": batch_id,
            "itemsAccepted": accepted,
            "itemsDeduplicated": twice,
            "sealed": len(known) == batch.run_count,
        }
        if not document["sealed"]:
            document |= {"enqueuedCount": len(known), "expectedCount": batch.run_count}

        return json_reply(200, document)

    async def retrieve(self, exchange: Exchange, batch_id: str) -> Reply:
        """GET batches/<id>."""
        batch, run_ids = await self._readable(exchange, batch_id)
        is_done = len(run_ids) == batch.run_count and await self._are_finished(run_ids)
        created_at = run_shapes.show_time(batch.created_at / 1000)
        document: dict[str, object] = {
            "id": batch.id,
            "status": "COMPLETED" if is_done else "PROCESSING",
            "createdAt": created_at,
            "updatedAt": created_at,
            "runCount": batch.run_count,
            "runs": run_ids,
            "processing": {"errors": []},
        }
        if batch.idempotency_key is not None:
            document["idempotencyKey"] = batch.idempotency_key

        return json_reply(200, document)

    async def results(self, exchange: Exchange, batch_id: str) -> Reply:
        """GET batches/<id>/results: of the runs that have ended, unless they are too large."""
        _, run_ids = await self._readable(exchange, batch_id)
        items: list[msgspec.Raw] = []
        size = 0
        async for run in self._walk(run_ids):
            size += len(run.output or b"")
            if size > RESULTS_BYTES_MAX:
                return TOO_MANY_RESULTS
            # Written one by one: all at once would hold up everybody else.
            items.append(msgspec.Raw(msgspec.json.encode(run_shapes.show_result(run))))

        return json_reply(200, {"id": batch_id, "items": items})

    def _require(self, batch_id: str) -> Batch:
        batch = self._batches.find(batch_id)
        if batch is None:
            raise RefusalError(answers.RESOURCE_NOT_FOUND)

        return batch

    async def _readable(self, exchange: Exchange, batch_id: str) -> tuple[Batch, list[str]]:
        caller = self._access.identify(exchange)
        if exchange.method != "GET":
            raise RefusalError(answers.method_not_allowed("GET"))
        if not caller.may("read", "batch", [batch_id]):
            caller.require("read", "runs")
        batch = self._batches.find(batch_id)
        if batch is None:
            raise RefusalError(answers.NOT_FOUND)

        return batch, list((await self._batches.runs(batch_id)).values())

    async def _hand_on(self, batch: Batch, group: _Group) -> None:
        if not group.items:
            return
        run_ids = (await self._link.trigger(group.items)).run_ids
        await self._batches.add(batch.id, dict(zip(group.indexes, run_ids, strict=True)))

    async def _are_finished(self, run_ids: list[str]) -> bool:
        reader = self._runs.reader()

        return reader is None or await reader.are_finished(run_ids)

    async def _walk(self, run_ids: Iterable[str]) -> AsyncIterator[Run]:
        """Yield the runs that have ended; one at a time, so that all others get their turn."""
        reader = self._runs.reader()
        if reader is None:
            return
        for run_id in run_ids:
            run = await reader.get(run_id)
            if run is not None and run.status.is_finished:
                yield run
            await asyncio.sleep(0)


def _with_key(item: BatchItem, batch: Batch, index: int) -> TriggerItem:
    request = item.to_item()
    if request.idempotency_key is not None:
        return request

    return msgspec.structs.replace(request, idempotency_key=f"{batch.id}/{index}")


def _check_index(item: BatchItem, batch: Batch) -> int:
    if item.index is None:
        raise RefusalError(json_reply(400, {"error": "Validation error: an item has no index"}))
    if item.index >= batch.run_count:
        raise unprocessable(
            f"Item {item.index} is not in a batch of {batch.run_count}: indexes are from 0"
        )

    return item.index


async def _read_lines(exchange: Exchange) -> AsyncIterator[BatchItem]:
    """Read a body of any length, line by line."""
    decoder = msgspec.json.Decoder(BatchItem)
    rest = bytearray()
    number = 0
    while (part := await exchange.read_part()) is not None:
        *lines, last = (bytes(rest) + part).split(b"\n")
        rest = bytearray(last)
        if len(rest) > BODY_BYTES_MAX:
            raise RefusalError(answers.BODY_TOO_LARGE)
        for line in lines:
            number += 1
            if line.strip():
                yield _decode(decoder, line, number)
    if rest.strip():
        yield _decode(decoder, bytes(rest), number + 1)


def _decode(decoder: msgspec.json.Decoder[BatchItem], line: bytes, number: int) -> BatchItem:
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        text = f"Validation error in line {number}: {error}"
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        text = f"Invalid JSON in line {number}"

    raise RefusalError(json_reply(400, {"error": text}))
