"""
The guardrail: a chat agent that writes to its run's streams writes where its chat does not look.

Armed by `Execution.in_chat_agent`. Only calls of `td_worker.streams` for a run's stream trigger it,
never `chat`, `sessions` or `streams.input`, which all go to where the chat is.
"""

from __future__ import annotations

from typing import Literal

import structlog

from td_worker.context import try_current

log = structlog.get_logger()

Method = Literal["pipe", "writer", "append", "read"]


def warn_in_chat_agent(method: Method) -> None:
    """
    Warn that `streams.<method>` was called inside a chat agent; once an attempt.

    To be called before anything else of the call, which may fail: the advice is worth most then.
    Other tasks, children of a chat agent's run among them, never warn.
    """
    execution = try_current()
    if execution is None or not execution.is_first_misuse():
        return
    log.warning(
        "stream.misdirected",
        method=f"streams.{method}",
        advice=(
            f"streams.{method}() was called in a chat.agent run: it uses a stream of the run, "
            "which the chat session does not show, so the chat UI will not see the chunks; use "
            "chat.response.write() or chat.stream.* instead. See "
            "https://trigger.dev/docs/ai-chat/patterns/large-payloads. Said once per run; later "
            f"calls of streams.{method}() are silent"
        ),
    )
