"""The plain ``def`` twins: the same names as in :mod:`td_worker`, without ``await``.

Example::

    from td_worker.sync import streams, tasks

    def summarize(payload):
        with streams.writer("tokens") as writer:
            for token in payload["tokens"]:
                writer.write(token)
        return tasks.trigger_and_wait("publish", payload).unwrap()
"""

from td_worker import blocking_sessions as sessions
from td_worker import blocking_tasks as tasks
from td_worker import context
from td_worker.chat import blocking as chat
from td_worker.streams import blocking as streams

__all__ = ["chat", "context", "sessions", "streams", "tasks"]
