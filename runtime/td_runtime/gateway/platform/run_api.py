"""Which path asks what about runs and batches. Imported with the first request for one."""

from __future__ import annotations

from pathlib import Path

from td_runtime.gateway.exchange import Exchange, Reply
from td_runtime.gateway.platform.access import Access
from td_runtime.gateway.platform.batch_routes import BatchRoutes
from td_runtime.gateway.platform.run_batches import RunBatches
from td_runtime.gateway.platform.run_link import RunLink
from td_runtime.gateway.platform.run_routes import RunRoutes
from td_runtime.gateway.platform.upload_routes import UploadRoutes
from td_runtime.gateway.platform.uploads import Uploads
from td_runtime.gateway.supervisor_link import SupervisorLink


class RunApi:
    """Answers what is below ``tasks``, ``runs`` and ``batches``, and takes uploads for them.

    Official clients use other versions for other routes, and older ones lower versions of the same
    route; what a route answers fits all of them.
    """

    def __init__(
        self,
        *,
        access: Access,
        store: Path,
        link: SupervisorLink,
        batches: RunBatches,
        uploads: Uploads,
    ) -> None:
        runs = RunRoutes(
            access=access, store=store, link=RunLink(link), batches=batches, uploads=uploads
        )
        self._runs = runs
        self._batches = BatchRoutes(
            access=access, link=RunLink(link), batches=batches, runs=runs, uploads=uploads
        )
        self._uploads = UploadRoutes(access=access, uploads=uploads)

    async def handle(self, exchange: Exchange, path: list[str]) -> Reply | None:
        """Answer a request; None if the path names nothing here.

        Raises:
            RefusalError: With the answer.
        """
        match path:
            case ["tasks", "batch"]:
                return await self._batches.trigger(exchange)
            case ["tasks", task, "trigger"] if task:
                return await self._runs.trigger(exchange, task)
            case ["batches", *rest]:
                return await self._handle_batch(exchange, rest)
            case ["runs", *rest]:
                return await self._handle_run(exchange, rest)
            case ["packets", _] if exchange.method == "PUT":
                return self._uploads.allow(exchange)
            case ["uploads", upload_id] if exchange.method == "PUT":
                return await self._uploads.receive(exchange, upload_id)

        return None

    async def _handle_batch(self, exchange: Exchange, path: list[str]) -> Reply | None:
        match path:
            case []:
                return await self._batches.create(exchange)
            case [batch_id]:
                return await self._batches.retrieve(exchange, batch_id)
            case [batch_id, "items"]:
                return await self._batches.add_items(exchange, batch_id)
            case [batch_id, "results"]:
                return await self._batches.results(exchange, batch_id)

        return None

    async def _handle_run(self, exchange: Exchange, path: list[str]) -> Reply | None:
        match path:
            case []:
                return await self._runs.list_runs(exchange)
            case [run_id]:
                return await self._runs.retrieve(exchange, run_id)
            case [run_id, "result"]:
                return await self._runs.result(exchange, run_id)
            case [run_id, "cancel"]:
                return await self._runs.cancel(exchange, run_id)
            case [run_id, "replay"]:
                return await self._runs.replay(exchange, run_id)
            case [run_id, "reschedule"]:
                return await self._runs.reschedule(exchange, run_id)
            case [run_id, "tags"]:
                return await self._runs.add_tags(exchange, run_id)
            case [run_id, "metadata"]:
                return await self._runs.metadata(exchange, run_id)

        return None
