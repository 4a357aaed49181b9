"""Celery with Redis."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from peers.queues import record

app = Celery("peers.queues.celery_app", broker=os.environ["BENCH_REDIS"])
app.conf.update(task_ignore_result=True, worker_hijack_root_logger=True)
if os.environ.get("BENCH_SAFE"):
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1
    )


@app.task
def noop() -> None:
    record.record()


@app.task
def nap() -> None:
    record.nap()


def enqueue(name: str) -> Any:
    return {"noop": noop, "nap": nap}[name].delay()
