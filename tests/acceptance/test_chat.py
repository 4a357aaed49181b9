"""Chat agents, from a client's message to the end of its turn, with a real runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.chat import Answer, ChatClient
from tests.runtime_process import RuntimeProcess

TASKS = '''
import asyncio
import os
import time

from td_worker import chat, context, streams
from td_worker.sync import chat as sync_chat


async def _answer(turn):
    """What the agents of most tests do: what the text of the message says."""
    match turn.text.partition(" "):
        case ["fail", *_]:
            yield {"type": "text-delta", "id": "t", "delta": "half"}
            raise ValueError("no model today")
        case ["hang", *_]:
            yield {"type": "text-delta", "id": "t", "delta": "half"}
            await asyncio.Event().wait()
        case ["listen", _, count]:
            heard = asyncio.Semaphore(0)
            chat.messages.on(lambda message: heard.release())
            yield {"type": "listening"}
            for _ in range(int(count)):
                await heard.acquire()
            yield {"type": "heard"}
        case ["big", *_]:
            yield {"type": "text-delta", "id": "t", "delta": "x" * 2_000_000}
        case ["write-big", *_]:
            chat.response.write({"type": "data-big", "data": "x" * 2_000_000})
            yield {"type": "text-delta", "id": "t", "delta": "small"}
        case ["end", *_]:
            chat.end_run()
            yield {"type": "text-delta", "id": "t", "delta": context.run.id}
        case ["history", *_]:
            async for chunk in chat.text([repr([_said(m) for m in turn.messages])]):
                yield chunk
        case ["misuse", *_]:
            await streams.append("log", "x")
            await streams.append("log", "y")
        case _:
            async for chunk in chat.text([turn.text, f"|{turn.number}|", context.run.id]):
                yield chunk


def _said(message):
    return message["role"][0] + ":" + "".join(p.get("text", "") for p in message["parts"])


async def _on_action(turn):
    yield {"type": "data-action", "data": turn.action}


@chat.agent(idle_timeout=60, on_action=_on_action)
async def agent(turn):
    async for chunk in _answer(turn):
        yield chunk


@chat.agent(idle_timeout=0)
async def impatient(turn):
    async for chunk in _answer(turn):
        yield chunk


@chat.agent(idle_timeout=0, turn_timeout=0.5)
async def brief(turn):
    yield {"type": "never"}


@chat.agent(max_turns=2)
async def twice(turn):
    async for chunk in _answer(turn):
        yield chunk


@chat.agent
def threaded(turn):
    sync_chat.response.write({"type": "data-step", "data": 1}).wait()
    yield from sync_chat.text([turn.text, "!"])
    while turn.text == "spin" and not sync_chat.is_stopped():
        time.sleep(0.01)


async def own_loop(payload):
    """A task that takes the messages itself, one after the other."""
    async with chat.bind(payload["chatId"]):
        seen = []
        while len(seen) < 3:
            message = (await chat.messages.wait(timeout=30)).unwrap()
            seen.append(message.message["parts"][0]["text"])
            chat.response.write({"type": "seen", "text": seen[-1]})
    return seen
'''


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with RuntimeProcess(
        tmp_path_factory.mktemp("chat"),
        tasks=TASKS,
        workers=2,
        concurrency=50,  # agents keep their places while they are warm
        level="debug",
        drain_timeout="1s",
    ) as running:
        yield running


def _cursor(answer: Answer) -> int:
    return int(answer.end["session-in-event-id"])


@pytest.mark.conformance("EA1")
def test_turn_streams_text_to_out(runtime: RuntimeProcess) -> None:
    """A message is answered by text deltas and a turn-complete that names it as dealt with."""
    with ChatClient(runtime, "agent", "ea1") as client:
        sent = client.send("hello")
        answer = client.answer(sent)

        assert answer.text == f"hello|1|{client.run_id}"
    kinds = [chunk["type"] for chunk in answer.chunks]
    assert kinds == ["start", "text-start", *["text-delta"] * 3, "text-end", "finish"]
    assert answer.chunks[0]["messageId"]
    assert _cursor(answer) == sent


@pytest.mark.conformance("EA2")
def test_turns_share_a_run_and_its_history(runtime: RuntimeProcess) -> None:
    """Three turns are answered by one run, and the third sees what was said before."""
    with ChatClient(runtime, "agent", "ea2") as client:
        first, second = client.ask("one"), client.ask("two")
        third = client.ask("history")

        assert first.text == f"one|1|{client.run_id}"
        assert second.text == f"two|2|{client.run_id}"
        said = ["u:one", f"a:{first.text}", "u:two", f"a:{second.text}", "u:history"]
        assert third.text == repr(said)


def test_each_turn_renews_the_token_and_trims(runtime: RuntimeProcess) -> None:
    """A turn-complete brings a token that works, and `out` begins at the turn before the last."""
    with ChatClient(runtime, "agent", "trim") as client:
        first = client.ask("one")
        assert client.token == first.end["public-access-token"]
        client.ask("two")
        client.ask("three")
        client.cursor = None
        oldest = next(client.records())

    assert oldest.seq >= first.end_seq


@pytest.mark.conformance("EA4")
def test_errored_turn_ends_and_the_next_is_fine(runtime: RuntimeProcess) -> None:
    """A handler that raises costs an error chunk and the turn, not the run."""
    with ChatClient(runtime, "agent", "ea4") as client:
        failed, fine = client.ask("fail"), client.ask("fine")

        assert failed.chunks[-1] == {"type": "error", "errorText": "no model today"}
        assert fine.text == f"fine|2|{client.run_id}"


def test_message_nobody_understands_fails_its_turn(runtime: RuntimeProcess) -> None:
    """A message without sense is answered by an error, for its client waits for an end."""
    with ChatClient(runtime, "agent", "nonsense") as client:
        answer = client.answer(client.append({"kind": "message", "payload": {"message": 7}}))
        ignored = client.append({"kind": "what"})
        client.append("no json")
        fine = client.ask("fine")

    assert answer.chunks[-1]["type"] == "error"
    assert _cursor(answer) < ignored
    assert fine.text.startswith("fine")


@pytest.mark.conformance("EA5")
def test_action_is_no_turn(runtime: RuntimeProcess) -> None:
    """An action is handed to `on_action`, ends with a turn-complete, and counts as no turn."""
    with ChatClient(runtime, "agent", "ea5") as client:
        action = {"chatId": "ea5", "trigger": "action", "action": {"undo": 1}}
        acted = client.answer(client.append({"kind": "message", "payload": action}))
        answer = client.ask("hello")

    assert acted.chunks == [{"type": "data-action", "data": {"undo": 1}}]
    assert answer.text.startswith("hello|1|")


@pytest.mark.conformance("EA6", "PD4")
def test_stop_ends_the_turn_in_its_middle(runtime: RuntimeProcess) -> None:
    """A stop closes the handler in mid-answer; the turn completes, the next message is answered."""
    with ChatClient(runtime, "agent", "ea6") as client:
        sent = client.send("hang")
        records = client.records()
        assert next(records).data["delta"] == "half"
        stop = client.stop()
        assert next(records).control == "turn-complete"
        records.close()
        answer = client.ask("again")

        assert sent < stop
        assert answer.text == f"again|2|{client.run_id}"


@pytest.mark.conformance("EA12")
def test_two_chats_never_mix(runtime: RuntimeProcess) -> None:
    """Chats that are served at the same time get their own answers."""
    with (
        ChatClient(runtime, "agent", "ea12-a") as one,
        ChatClient(runtime, "agent", "ea12-b") as other,
    ):
        sent = [(client, client.send(client.chat_id)) for client in (one, other)]
        texts = [client.answer(seq).text for client, seq in sent]

        assert one.run_id != other.run_id
        assert texts == [f"{client.chat_id}|1|{client.run_id}" for client in (one, other)]


@pytest.mark.conformance("EA13", "EA17")
def test_idle_run_waits_without_a_place_and_goes_on(runtime: RuntimeProcess) -> None:
    """After the idle time the run waits; the next message resumes that very run, each time."""
    with ChatClient(runtime, "impatient", "ea13") as client:
        for number, text in enumerate(["one", "two", "three"], 1):
            answer = client.ask(text)
            assert answer.text == f"{text}|{number}|{client.run_id}"
            _until_suspended(runtime, "ea13", number)


def _until_suspended(runtime: RuntimeProcess, chat_id: str, turn: int) -> None:
    """Before its first turn the run waits, too, or not, if the message is there soon enough."""

    def holds(events: list[dict[str, Any]]) -> bool:
        of_chat = [each for each in events if each.get("chat_id") == chat_id]
        turns = [at for at, each in enumerate(of_chat) if each.get("turn") == turn]

        return any(
            each["event"] == "chat.suspended" for at in turns[:1] for each in of_chat[at + 1 :]
        )

    runtime.until(holds, "a wait without a place")


@pytest.mark.conformance("EA14")
def test_end_run_makes_room_for_another(runtime: RuntimeProcess) -> None:
    """A run ended by `end_run` completes; the next message is answered once, by another run."""
    with ChatClient(runtime, "agent", "ea14") as client:
        last = client.ask("end")
        assert runtime.output(client.run_id) == {"turns": 1, "ended": "end_run"}
        answer = client.ask("hello")

        assert last.text == client.run_id
        assert answer.text.startswith("hello|1|")
        assert client.run_id not in answer.text


def test_max_turns_ends_the_run(runtime: RuntimeProcess) -> None:
    """A run ends after its last turn, and a message after that is answered by another run."""
    with ChatClient(runtime, "twice", "max") as client:
        client.ask("one")
        client.ask("two")
        assert runtime.output(client.run_id) == {"turns": 2, "ended": "max_turns"}

        assert client.run_id not in client.ask("three").text


@pytest.mark.conformance("EA22")
def test_run_without_messages_ends(runtime: RuntimeProcess) -> None:
    """A run to which nobody says anything ends by the turn time-out."""
    with ChatClient(runtime, "brief", "ea22") as client:
        assert runtime.output(client.run_id) == {"turns": 0, "ended": "turn_timeout"}


def test_close_ends_the_run(runtime: RuntimeProcess) -> None:
    """A `close` of the client ends the run at once, and not the one after it."""
    with ChatClient(runtime, "agent", "close") as client:
        client.ask("one")
        payload = {"chatId": "close", "trigger": "close"}
        client.answer(client.append({"kind": "message", "payload": payload}))
        assert runtime.output(client.run_id) == {"turns": 1, "ended": "close"}

        assert client.ask("two").text.startswith("two|1|")


@pytest.mark.conformance("PD1", "TC1", "TC2")
def test_messages_during_a_turn_get_turns_of_their_own(runtime: RuntimeProcess) -> None:
    """What comes during a turn is answered later, in order; no end names a message too early."""
    with ChatClient(runtime, "agent", "pd1") as client:
        sent = [client.send("listen 2"), client.send("one"), client.send("two")]
        answers = [client.answer(), client.answer(), client.answer()]

    assert [chunk["type"] for chunk in answers[0].chunks] == ["listening", "heard"]
    assert [answer.text.partition("|")[0] for answer in answers[1:]] == ["one", "two"]
    assert [_cursor(answer) for answer in answers] == sent


@pytest.mark.conformance("TC1", "TC3")
def test_client_finds_the_end_of_its_own_turn(runtime: RuntimeProcess) -> None:
    """A client that knows its message's number skips earlier ends; another takes the first."""
    with ChatClient(runtime, "agent", "tc1") as client:
        client.send("listen 1")
        second = client.send("mine")
        any_end = client.answer()
        client.cursor = None
        mine = client.answer(second)

    assert mine.text.startswith("mine|2|")
    assert [chunk["type"] for chunk in any_end.chunks] == ["listening", "heard"]


def test_stop_during_a_turn_spares_what_waits(runtime: RuntimeProcess) -> None:
    """A stop ends the turn under way alone; a message sent before the stop keeps its turn."""
    with ChatClient(runtime, "agent", "spare") as client:
        first = client.send("hang")
        records = client.records()
        assert next(records).data["delta"] == "half"
        records.close()
        second = client.send("waiting")
        client.stop()
        stopped = client.answer()
        answer = client.answer(second)

    assert _cursor(stopped) == first
    assert answer.text.startswith("waiting|2|")


@pytest.mark.conformance("PD2")
def test_message_after_a_failed_turn_is_answered_once(runtime: RuntimeProcess) -> None:
    """After a turn that failed, each later message is answered, and once."""
    with ChatClient(runtime, "agent", "pd2") as client:
        client.ask("fail")
        client.ask("one")
        answers = [client.ask("two"), client.ask("history")]

    assert answers[0].text.startswith("two|3|")
    assert answers[1].text.count("u:one") == 1


@pytest.mark.conformance("PD3")
def test_own_loop_takes_messages_in_order(runtime: RuntimeProcess) -> None:
    """A task with a loop of its own gets every message, in order, each once."""
    with ChatClient(runtime, "own_loop", "pd3") as client:
        for text in ("a", "b", "c"):
            client.send(text)

        assert runtime.output(client.run_id) == ["a", "b", "c"]
        seen = [record.data["text"] for _, record in zip(range(3), client.records(), strict=False)]
    assert seen == ["a", "b", "c"]


def test_plain_generator_answers_and_is_stopped(runtime: RuntimeProcess) -> None:
    """A plain generator runs in a thread: it answers, and sees the stop."""
    with ChatClient(runtime, "threaded", "threads") as client:
        answer = client.ask("hello")
        sent = client.send("spin")
        records = client.records()
        while (record := next(records)).data is None or record.data["type"] != "finish":
            pass
        client.stop()
        assert next(records).control == "turn-complete"
        records.close()
        again = client.ask("bye")

    assert answer.text == "hello!"
    assert answer.chunks[0] == {"type": "data-step", "data": 1}
    assert sent
    assert again.text == "bye!"


@pytest.mark.parametrize("how", ["big", "write-big"])
def test_chunk_that_is_too_large_fails_its_turn_alone(runtime: RuntimeProcess, how: str) -> None:
    """An oversize chunk, yielded or written, is told to the client and the log; the agent lives."""
    with ChatClient(runtime, "agent", f"over-{how}") as client:
        failed, fine = client.ask(how), client.ask("fine")

    assert failed.chunks[-1]["type"] == "error"
    assert "over the realtime stream's per-record cap" in failed.chunks[-1]["errorText"]
    assert runtime.event("chat.write_failed", chat_id=f"over-{how}")
    assert fine.text.startswith("fine|2|")


@pytest.mark.conformance("GW1", "GW3")
def test_run_streams_in_an_agent_are_warned_of(runtime: RuntimeProcess) -> None:
    """An agent that writes to its run's streams is told so, once; one that does not is not."""
    with (
        ChatClient(runtime, "agent", "misuse") as client,
        ChatClient(runtime, "agent", "proper") as other,
    ):
        client.ask("misuse")
        other.ask("hello")

        warned = runtime.find("stream.misdirected")
        assert [line["run_id"] for line in warned] == [client.run_id]
