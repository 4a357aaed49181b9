"""
Rebuilds an assistant's message from the UI-message chunks that were streamed: pure data.

The chunk types are the AI SDK's. A chunk of another type, such as an event of a model provider that
is passed on as it comes, changes nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from td_worker.chat.payload import UIMessage

__all__ = ["MessageAccumulator"]

Part = dict[str, Any]


class MessageAccumulator:
    """
    One assistant message under construction.

    Args:
        message_id: Its id, unless a `start` chunk names another.
        base: A message that the chunks go on with; it is not changed.
    """

    def __init__(self, message_id: str, *, base: UIMessage | None = None) -> None:
        self._message: UIMessage = (
            copy.deepcopy(base)
            if base is not None
            else {"id": message_id, "role": "assistant", "parts": []}
        )
        self._parts: list[Part] = self._message.setdefault("parts", [])
        self._open: dict[tuple[str, str], Part] = {}
        self._inputs: dict[str, str] = {}
        self._touched = base is not None

    @staticmethod
    def knows(kind: object) -> bool:
        """Say whether chunks of this type have a place in a message."""
        return isinstance(kind, str) and (kind in _HANDLERS or kind.startswith("data-"))

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take one chunk in."""
        kind = chunk.get("type")
        if not isinstance(kind, str):
            return
        if kind.startswith("data-"):
            self._add_data(kind, chunk)
        elif (handle := _HANDLERS.get(kind)) is not None:
            handle(self, chunk)

    def message(self, *, complete: bool = True) -> UIMessage | None:
        """
        Return the message as it is now, a copy; None when there is none.

        Args:
            complete: False for a turn that was cut short: tool calls that have no result yet, which
                no model takes as history, are left out.
        """
        found = copy.deepcopy(self._message)
        for part in found["parts"]:
            if part.get("state") == "streaming":
                part["state"] = "done"
        if not complete:
            found["parts"] = [part for part in found["parts"] if not _dangles(part)]
        if not self._touched or not any(part["type"] != "step-start" for part in found["parts"]):
            return None

        return found

    # --- by type of chunk ----------------------------------------------------------------------

    def _start(self, chunk: Mapping[str, Any]) -> None:
        message_id = chunk.get("messageId")
        if isinstance(message_id, str) and message_id:
            self._message["id"] = message_id
        self._add_metadata(chunk)

    def _add_metadata(self, chunk: Mapping[str, Any]) -> None:
        metadata = chunk.get("messageMetadata")
        if metadata is not None:
            self._message["metadata"] = _merged(self._message.get("metadata"), metadata)

    def _begin(self, kind: str, chunk: Mapping[str, Any]) -> None:
        part: Part = {"type": kind, "text": "", "state": "streaming"}
        self._open[kind, _text(chunk, "id")] = self._push(part, chunk)

    def _extend(self, kind: str, chunk: Mapping[str, Any]) -> None:
        key = kind, _text(chunk, "id")
        if key not in self._open:
            self._begin(kind, chunk)
        self._open[key]["text"] += _text(chunk, "delta")
        _note_provider(self._open[key], chunk)

    def _end(self, kind: str, chunk: Mapping[str, Any]) -> None:
        part = self._open.pop((kind, _text(chunk, "id")), None)
        if part is not None:
            part["state"] = "done"
            _note_provider(part, chunk)

    def _start_step(self, _chunk: Mapping[str, Any]) -> None:
        self._parts.append({"type": "step-start"})

    def _finish_step(self, _chunk: Mapping[str, Any]) -> None:
        for part in self._open.values():
            part["state"] = "done"
        self._open.clear()

    def _finish(self, chunk: Mapping[str, Any]) -> None:
        self._finish_step(chunk)
        self._add_metadata(chunk)

    def _copy(self, chunk: Mapping[str, Any]) -> None:
        self._push({key: value for key, value in chunk.items() if key != "providerMetadata"}, chunk)

    def _add_data(self, kind: str, chunk: Mapping[str, Any]) -> None:
        if chunk.get("transient") is True:
            return
        part_id = chunk.get("id")
        for part in self._parts:
            if part_id is not None and part["type"] == kind and part.get("id") == part_id:
                part["data"] = copy.deepcopy(chunk.get("data"))
                return
        self._push({"type": kind} | {k: chunk[k] for k in ("id", "data") if k in chunk}, chunk)

    def _tool_input_start(self, chunk: Mapping[str, Any]) -> None:
        self._inputs[_text(chunk, "toolCallId")] = ""
        self._tool(chunk, state="input-streaming")

    def _tool_input_delta(self, chunk: Mapping[str, Any]) -> None:
        call = _text(chunk, "toolCallId")
        self._inputs[call] = self._inputs.get(call, "") + _text(chunk, "inputTextDelta")
        try:
            value = json.loads(self._inputs[call])
        except ValueError:
            return
        self._tool(chunk, state="input-streaming", input=value)

    def _tool_input_available(self, chunk: Mapping[str, Any]) -> None:
        self._tool(chunk, state="input-available", input=chunk.get("input"))

    def _tool_input_error(self, chunk: Mapping[str, Any]) -> None:
        self._tool(
            chunk,
            state="output-error",
            input=chunk.get("input"),
            errorText=_text(chunk, "errorText"),
        )

    def _tool_output_available(self, chunk: Mapping[str, Any]) -> None:
        extra = {"preliminary": True} if chunk.get("preliminary") else {}
        part = self._tool(chunk, state="output-available", output=chunk.get("output"), **extra)
        if not extra and part is not None:
            part.pop("preliminary", None)

    def _tool_output_error(self, chunk: Mapping[str, Any]) -> None:
        self._tool(chunk, state="output-error", errorText=_text(chunk, "errorText"))

    def _tool_output_denied(self, chunk: Mapping[str, Any]) -> None:
        self._tool(chunk, state="output-denied")

    def _tool_approval_request(self, chunk: Mapping[str, Any]) -> None:
        approval = {"id": chunk.get("approvalId")}
        self._tool(chunk, state="approval-requested", approval=approval)

    def _tool(self, chunk: Mapping[str, Any], **facts: Any) -> Part | None:
        """Bring the part of this tool call up to date; it begins with its tool's name."""
        call = _text(chunk, "toolCallId")
        part = next((p for p in self._parts if p.get("toolCallId") == call), None)
        name = chunk.get("toolName")
        if part is None:
            if not isinstance(name, str):
                return None
            kind = {"type": "dynamic-tool", "toolName": name}
            named = kind if chunk.get("dynamic") else {"type": f"tool-{name}"}
            part = self._push(named | {"toolCallId": call}, {})
        part |= copy.deepcopy(facts)
        if chunk.get("providerExecuted") is not None:
            part["providerExecuted"] = chunk["providerExecuted"]
        if chunk.get("providerMetadata") is not None:
            part["callProviderMetadata"] = copy.deepcopy(chunk["providerMetadata"])
        self._touched = True

        return part

    def _push(self, part: Part, chunk: Mapping[str, Any]) -> Part:
        part = copy.deepcopy(part)
        _note_provider(part, chunk)
        self._parts.append(part)
        self._touched = True

        return part


_Handler = Callable[[MessageAccumulator, Mapping[str, Any]], None]


def _for(kind: str, method: str) -> _Handler:
    """Return the handler of text or reasoning chunks."""
    return lambda accumulator, chunk: getattr(accumulator, method)(kind, chunk)


_HANDLERS: Final[dict[str, _Handler]] = {
    "start": MessageAccumulator._start,
    "text-start": _for("text", "_begin"),
    "text-delta": _for("text", "_extend"),
    "text-end": _for("text", "_end"),
    "reasoning-start": _for("reasoning", "_begin"),
    "reasoning-delta": _for("reasoning", "_extend"),
    "reasoning-end": _for("reasoning", "_end"),
    "tool-input-start": MessageAccumulator._tool_input_start,
    "tool-input-delta": MessageAccumulator._tool_input_delta,
    "tool-input-available": MessageAccumulator._tool_input_available,
    "tool-input-error": MessageAccumulator._tool_input_error,
    "tool-approval-request": MessageAccumulator._tool_approval_request,
    "tool-output-available": MessageAccumulator._tool_output_available,
    "tool-output-error": MessageAccumulator._tool_output_error,
    "tool-output-denied": MessageAccumulator._tool_output_denied,
    "source-url": MessageAccumulator._copy,
    "source-document": MessageAccumulator._copy,
    "file": MessageAccumulator._copy,
    "start-step": MessageAccumulator._start_step,
    "finish-step": MessageAccumulator._finish_step,
    "finish": MessageAccumulator._finish,
    "message-metadata": MessageAccumulator._add_metadata,
}


def _dangles(part: Part) -> bool:
    return "toolCallId" in part and part.get("state") in ("input-streaming", "input-available")


def _text(chunk: Mapping[str, Any], name: str) -> str:
    found = chunk.get(name)

    return found if isinstance(found, str) else ""


def _note_provider(part: Part, chunk: Mapping[str, Any]) -> None:
    if chunk.get("providerMetadata") is not None:
        part["providerMetadata"] = copy.deepcopy(chunk["providerMetadata"])


def _merged(old: Any, new: Any) -> Any:
    """Merge metadata as the AI SDK does: objects key by key, anything else by replacement."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return copy.deepcopy(new)

    return old | {key: _merged(old.get(key), value) for key, value in new.items()}
