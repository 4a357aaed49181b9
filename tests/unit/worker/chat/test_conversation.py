"""The loop of an agent over a platform in memory: what a client has sent before it is all there is.

Every conversation ends with a `close` of the client, so that nothing here waits for time to pass.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from td_worker import chat
from td_worker.chat.payload import parse_payload
from td_worker.errors import (
    AbortTaskRunError,
    ControlPlaneRefusedError,
    NotInChatError,
    SessionReadError,
    TaskPayloadError,
)
from td_worker.sync import chat as sync_chat
from td_worker.testing import FakePlatform, StoredRecord, run_platform

CLOSE = {"kind": "message", "payload": {"trigger": "close", "chatId": "c"}}


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with run_platform() as platform:
        yield platform


def _message(text: str, **payload: Any) -> dict[str, Any]:
    message = {"id": text, "role": "user", "parts": [{"type": "text", "text": text}]}

    return {
        "kind": "message",
        "payload": {"trigger": "submit-message", "message": message} | payload,
    }


async def _converse(
    platform: FakePlatform, agent: chat.Agent, *sent: Any, payload: Any = None, attempt: int = 1
) -> Any:
    """Run the agent on what was sent, and a close; return its output."""
    for record in (*sent, CLOSE):
        platform.sessions.send("c", record)
    with platform.execution(task_id="agent", attempt=attempt):
        return await agent({"chatId": "c", "trigger": "preload"} | (payload or {}))


def _ends(platform: FakePlatform) -> list[StoredRecord]:
    return [r for r in platform.sessions.records("c") if dict(r.headers).get("trigger-control")]


async def test_a_turn_per_message_in_order(platform: FakePlatform):
    """Each message gets one turn, numbered from 1, and sees what was said before."""
    seen: list[tuple[int, list[str]]] = []

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        seen.append((turn.number, [message["role"] for message in turn.messages]))
        yield {"type": "text-delta", "id": "t", "delta": turn.text.upper()}

    output = await _converse(platform, agent, _message("a"), _message("b"))

    assert output == {"turns": 2, "ended": "close"}
    assert seen == [(1, ["user"]), (2, ["user", "assistant", "user"])]
    assert [chunk["delta"] for chunk in platform.sessions.chunks("c")] == ["A", "B"]
    assert [dict(end.headers)["session-in-event-id"] for end in _ends(platform)] == ["0", "1", "2"]


async def test_the_message_of_the_payload_comes_first(platform: FakePlatform):
    """A run that was started with a message answers it before what waits on `in`."""

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        yield turn.text

    first = _message("first")["payload"]
    await _converse(platform, agent, _message("second"), payload=first)

    assert platform.sessions.chunks("c") == ["first", "second"]


async def test_another_attempt_answers_the_payload_no_second_time(platform: FakePlatform):
    """An attempt whose run has answered its payload's message goes on with what came after it."""

    @chat.agent(max_turns=1)
    async def agent(turn: chat.Turn) -> Any:
        yield turn.text

    first = _message("first")["payload"]
    for attempt in (1, 2):
        with platform.execution(task_id="agent", attempt=attempt):
            await agent({"chatId": "c"} | first)
        platform.sessions.send("c", _message("second"))

    assert platform.sessions.chunks("c") == ["first", "second"]


async def test_an_attempt_whose_chat_is_in_other_hands_ends(platform: FakePlatform):
    """Another attempt of a run that has handed its session over answers nothing."""

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        yield turn.text

    platform.sessions.add("c", currentRunId="run_other")
    handed_over = {"sessionId": "session_1"}
    output = await _converse(platform, agent, _message("a"), payload=handed_over, attempt=2)

    assert output == {"turns": 0, "ended": "replaced"}
    assert platform.sessions.chunks("c") == []


async def test_a_run_that_ends_says_what_it_leaves(platform: FakePlatform):
    """A run hands over what it knows to wait, and otherwise says how far it has come."""

    @chat.agent(max_turns=1)
    async def agent(turn: chat.Turn) -> Any:
        yield turn.text

    platform.sessions.add("c")
    platform.sessions.send("c", _message("a"))
    with platform.execution(task_id="agent", run_id="run_1"):
        await agent({"chatId": "c", "trigger": "preload"})
    await _converse(platform, agent, _message("b"), payload={"continuation": True})

    (said, body), (left, _) = platform.sessions.ends
    assert said == "end"
    assert body == {"callingRunId": "run_1", "reason": "max_turns", "cursor": 0}
    assert left == "end-and-continue"


async def test_a_later_run_goes_on_behind_the_last_turn(platform: FakePlatform):
    """A continuation answers what is new alone, and is no start of the chat."""
    starts: list[int] = []

    @chat.agent(on_chat_start=lambda turn: starts.append(turn.number))
    async def agent(turn: chat.Turn) -> Any:
        yield turn.text

    await _converse(platform, agent, _message("a"))
    await _converse(platform, agent, _message("b"), payload={"continuation": True, "trigger": None})

    assert platform.sessions.chunks("c") == ["a", "b"]
    assert starts == [1]


async def test_hooks_are_called_around_turns(platform: FakePlatform):
    """Hooks see the turn, in order; a failing `on_turn_complete` takes nothing back."""
    called: list[Any] = []

    def complete(turn: chat.Turn) -> None:
        text = turn.response["parts"][0]["text"] if turn.response else None
        called.append(("complete", text, turn.error, turn.last_event_id is not None))
        raise ValueError("too late")

    async def begin(turn: chat.Turn) -> None:
        called.append(("begin", threading.current_thread() is threading.main_thread()))

    @chat.agent(
        on_chat_start=lambda turn: called.append("start"),
        on_turn_start=begin,
        on_turn_complete=complete,
    )
    async def agent(turn: chat.Turn) -> Any:
        yield {"type": "text-delta", "id": "t", "delta": turn.text}

    output = await _converse(platform, agent, _message("a"), _message("b"))

    assert output["turns"] == 2
    turn_of = [("begin", True), ("complete", "a", None, True)]
    assert called == ["start", *turn_of, ("begin", True), ("complete", "b", None, True)]


async def test_a_hook_that_refuses_fails_the_turn(platform: FakePlatform):
    """What `on_turn_start` raises is told to the client, and the handler is not called."""

    def refuse(turn: chat.Turn) -> None:
        if turn.text == "a":
            raise ValueError("not you")

    @chat.agent(on_turn_start=refuse, error_text=lambda error: f"no: {error}")
    async def agent(turn: chat.Turn) -> Any:
        yield turn.text

    await _converse(platform, agent, _message("a"), _message("b"))

    assert platform.sessions.chunks("c") == [{"type": "error", "errorText": "no: not you"}, "b"]


@pytest.mark.conformance("SE1", "SE2")
async def test_what_a_failed_turn_said_is_kept(platform: FakePlatform):
    """The partial answer of a turn that failed is in `on_turn_complete` and in the next turn."""
    kept: list[Any] = []

    @chat.agent(on_turn_complete=lambda turn: kept.append((turn.response, turn.error)))
    async def agent(turn: chat.Turn) -> Any:
        yield {"type": "text-delta", "id": "t", "delta": str(len(turn.messages))}
        if turn.text == "a":
            raise ValueError("broke")

    await _converse(platform, agent, _message("a"), _message("b"))

    assert kept[0][0]["parts"] == [{"type": "text", "text": "1", "state": "done"}]
    assert str(kept[0][1]) == "broke"
    deltas = [c["delta"] for c in platform.sessions.chunks("c") if c["type"] == "text-delta"]
    assert deltas == ["1", "3"]


async def test_records_that_are_given_up_fail_their_turn(platform: FakePlatform):
    """A turn whose chunks the stream store refuses ends with an error; the next turn is fine."""

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        if turn.text == "a":
            platform.spoil("append", status=400, text="no")
        yield turn.text

    output = await _converse(platform, agent, _message("a"), _message("b"))

    assert output["turns"] == 2
    error, answer = platform.sessions.chunks("c")
    assert error["type"] == "error"
    assert answer == "b"
    assert len(_ends(platform)) == 3


@pytest.mark.parametrize(
    "broken",
    [
        "conversation.submit_message",
        "conversation.put_message",
        "output.MessageAccumulator.__init__",
        "output.MessageAccumulator.message",
    ],
)
async def test_what_fails_around_a_handler_fails_its_turn_alone(
    platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, broken: str
):
    """The client of a turn that cannot be begun or kept gets its error and its end."""

    def fails(*_: Any, **__: Any) -> Any:
        raise KeyError(broken)

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        yield {"type": "text-delta", "id": "t", "delta": turn.text}

    monkeypatch.setattr(f"td_worker.chat.{broken}", fails)
    output = await _converse(platform, agent, _message("a"), _message("b"))

    errors = [c["errorText"] for c in platform.sessions.chunks("c") if c["type"] == "error"]
    assert output == {"turns": 2, "ended": "close"}
    assert errors == [repr(broken)] * 2
    assert [dict(end.headers)["session-in-event-id"] for end in _ends(platform)] == ["0", "1", "2"]


async def test_a_turn_ends_without_a_token_when_none_is_made(platform: FakePlatform):
    """A control plane that signs nothing costs the client its fresh token, not the end."""

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        yield turn.text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("td_worker.chat.session.MainChannel.access_token", _no_token)
        await _converse(platform, agent, _message("a"))

    headers = [dict(end.headers) for end in _ends(platform)]
    assert all("public-access-token" not in header for header in headers)
    assert headers[0]["session-in-event-id"] == "0"


async def _no_token(_channel: Any, _ttl: float) -> str:
    raise ControlPlaneRefusedError("no")


@pytest.mark.conformance("EA10")
async def test_a_regeneration_answers_the_last_question_anew(platform: FakePlatform):
    """The handler sees the history without the answer that is to be replaced."""
    lengths: list[int] = []

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        lengths.append(len(turn.messages))
        yield {"type": "text-delta", "id": "t", "delta": "x"}

    again = {"kind": "message", "payload": {"trigger": "regenerate-message"}}
    await _converse(platform, agent, _message("a"), again)

    assert lengths == [1, 1]


async def test_an_abort_ends_the_run(platform: FakePlatform):
    """AbortTaskRunError is the run's, not the turn's."""

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        raise AbortTaskRunError("enough")
        yield

    with pytest.raises(AbortTaskRunError):
        await _converse(platform, agent, _message("a"))

    assert _ends(platform) == []


async def test_cancelling_the_run_ends_its_handler(platform: FakePlatform):
    """A cancelled run closes the handler's source and is cancelled itself; no turn is completed."""
    began, closed = asyncio.Event(), asyncio.Event()

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        try:
            began.set()
            yield "half"
            await asyncio.Event().wait()
        finally:
            closed.set()

    task = asyncio.create_task(_converse(platform, agent, _message("a")))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert closed.is_set()
    assert _ends(platform) == []


@dataclass
class _Delta:
    text: str


class _Event(msgspec.Struct):
    kind: str


async def test_every_kind_of_source_is_taken(platform: FakePlatform):
    """Handlers of every shape stream what JSON can say; None is left out."""

    async def generator(turn: chat.Turn) -> Any:
        yield _Delta("async generator")
        yield None

    async def returns_async(turn: chat.Turn) -> Any:
        return generator(turn)

    async def returns_plain(turn: chat.Turn) -> Any:
        return iter([_Event("iterator")])

    def plain_generator(turn: chat.Turn) -> Any:
        yield threading.current_thread() is threading.main_thread()

    def returns_list(turn: chat.Turn) -> Any:
        return ["list"]

    def returns_nothing(turn: chat.Turn) -> None:
        sync_chat.response.write("written").wait()

    handlers = [
        generator, returns_async, returns_plain, plain_generator, returns_list, returns_nothing
    ]  # fmt: skip
    for number, handler in enumerate(handlers):
        await _converse(
            platform, chat.agent(handler), _message(str(number)), payload={"continuation": True}
        )

    assert platform.sessions.chunks("c") == [
        {"text": "async generator"},
        {"text": "async generator"},
        {"kind": "iterator"},
        False,
        "list",
        "written",
    ]


@pytest.mark.parametrize("answer", ["text", {"type": "x"}, 7])
async def test_a_handler_that_returns_one_chunk_is_told_how(platform: FakePlatform, answer: Any):
    """Text or an object would be taken apart: the error says what to write instead."""

    async def handler(turn: chat.Turn) -> Any:
        return answer

    await _converse(platform, chat.agent(handler), _message("a"))

    (chunk,) = platform.sessions.chunks("c")
    assert "yield" in chunk["errorText"]


async def test_data_parts_beside_the_answer_are_part_of_it(platform: FakePlatform):
    """What `chat.response.write` says in between is in order, and in the answer's message."""
    answers: list[Any] = []

    @chat.agent(on_turn_complete=lambda turn: answers.append(turn.response))
    async def agent(turn: chat.Turn) -> Any:
        chat.response.write({"type": "data-a", "data": 1})
        yield {"type": "text-delta", "id": "t", "delta": "x"}
        chat.response.write({"type": "data-b", "data": 2, "transient": True})

    await _converse(platform, agent, _message("a"))

    assert [c["type"] for c in platform.sessions.chunks("c")] == ["data-a", "text-delta", "data-b"]
    assert [part["type"] for part in answers[0]["parts"]] == ["data-a", "text"]


async def test_messages_may_be_taken_by_a_turn(platform: FakePlatform):
    """A message that the handler takes is answered in its turn and gets none of its own."""

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        yield turn.text
        peeked = chat.messages.peek()
        if turn.text == "a":
            more = (await chat.messages.once(timeout=30)).unwrap()
            assert peeked is None or peeked.message == more.message
            yield more.message["parts"][0]["text"] + "?"

    output = await _converse(platform, agent, _message("a"), _message("b"), _message("c"))

    assert output["turns"] == 2
    assert platform.sessions.chunks("c") == ["a", "b?", "c"]


async def test_a_block_gets_what_the_one_before_it_has_left(platform: FakePlatform):
    """What a block has read and nobody has taken is there for the next of the same attempt."""
    for text in "abc":
        platform.sessions.send("c", _message(text))
    was_read = asyncio.Event()

    def note(payload: chat.ChatPayload) -> None:
        if (payload.message or {}).get("id") == "c":
            was_read.set()

    with platform.execution():
        async with chat.bind("c"):
            first = (await chat.messages.once(timeout=30)).unwrap()
            chat.messages.on(note)
            await was_read.wait()
        async with chat.bind("c"):
            rest = [(await chat.messages.once(timeout=30)).unwrap() for _ in range(2)]

    assert [payload.message["id"] for payload in (first, *rest)] == ["a", "b", "c"]


async def test_a_handler_that_sees_nothing_is_told_in_the_log(
    platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
):
    """`messages.on` returns at once: that the chat cannot be read is said by its own event."""

    async def fails(_channel: Any) -> None:
        raise SessionReadError("session/c/main/out", status=404, reason="no session")

    monkeypatch.setattr("td_worker.chat.session.MainChannel.last_turn", fails)
    with platform.execution(), capture_logs() as logs:
        async with chat.bind("c") as bound:
            chat.messages.on(lambda message: True)
            await bound.ask(lambda mailbox: mailbox.cursor())

    (line,) = [line for line in logs if line["event"] == "chat.observing_failed"]
    assert "no session" in line["reason"]


async def test_the_stream_calls_write_to_the_chat(platform: FakePlatform):
    """`chat.stream` pipes, appends and writes in order with the rest."""

    @chat.agent
    async def agent(turn: chat.Turn) -> Any:
        yield 1
        await chat.stream.append(2)
        await chat.stream.pipe([3, 4]).wait()
        async with chat.stream.writer() as writer:
            await writer.write(5)
        yield 6

    await _converse(platform, agent, _message("a"))

    assert platform.sessions.chunks("c") == [1, 2, 3, 4, 5, 6]


async def test_a_payload_without_a_chat_is_refused(platform: FakePlatform):
    """An agent that was triggered like a task says what is missing."""
    agent = chat.agent(lambda turn: None)
    with platform.execution(task_id="agent"), pytest.raises(TaskPayloadError, match="chatId"):
        await agent({"hello": 1})


async def test_chat_calls_outside_of_a_chat_say_what_to_do(platform: FakePlatform):
    """A task that serves no chat is told how to."""
    with platform.execution(), pytest.raises(NotInChatError, match=r"chat\.bind"):
        chat.response.write("x")


def test_the_decorator_keeps_the_name_and_takes_a_payload():
    """An agent is called with a payload whatever its handler's signature is."""

    @chat.agent(max_turns=3)
    async def answer(turn: chat.Turn) -> Any:
        """Answer."""
        yield

    assert (answer.__name__, answer.__doc__, answer.options.max_turns) == ("answer", "Answer.", 3)


@pytest.mark.parametrize(
    "trigger", ["submit-message", "regenerate-message", "preload", "close", "action"]
)
def test_every_trigger_is_understood(trigger: str):
    """Payloads of the official client keep their meaning; keys nobody knows are left out."""
    value = {"chatId": "c", "trigger": trigger, "messageId": "m", "body": {"extra": 1}}
    payload = parse_payload(value)

    assert (payload.chat_id, payload.trigger, payload.message_id) == ("c", trigger, "m")
    assert payload.asks_for_turn == (trigger in ("regenerate-message", "action"))
