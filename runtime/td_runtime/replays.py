"""What a replay has in common with the run that it repeats."""

from td_runtime.store.records import Run
from td_worker.messages import TriggerItem

__all__ = ["repeat"]


def repeat(run: Run) -> TriggerItem:
    """Return a request for a run like *run*; what belongs to one time alone is left out.

    That is its delay and expiry, its idempotency key, and the metadata that it has changed.
    """
    return TriggerItem(
        task=run.task,
        payload=run.payload,
        priority=run.priority,
        queue=run.queue,
        concurrency_key=run.concurrency_key,
        tags=run.tags,
        max_attempts=run.max_attempts,
        max_duration=run.max_duration,
        replay_of=run.id,
    )
