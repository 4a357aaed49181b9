"""When the config wants failed attempts tried again, in the words of `td_worker.retry`."""

from td_runtime.config import TaskConfig
from td_worker.retry import RetryPolicy

__all__ = ["retry_policy"]


def retry_policy(task: TaskConfig) -> RetryPolicy:
    """Return when failed attempts of *task* are tried again."""
    retry = task.retry

    return RetryPolicy(
        max_attempts=retry.max_attempts,
        factor=retry.factor,
        min_timeout=retry.min_timeout,
        max_timeout=retry.max_timeout,
        randomize=retry.randomize,
    )
