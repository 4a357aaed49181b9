"""Tasks as their authors write them: never run, only checked, by mypy strict and by basedpyright.

What a call returns is asserted, so that a public name that turns into `Any` fails `make lint`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

from td_sharedcache import AsyncMinter, Credential, CredentialCache, Grant, Minter, Slot
from td_worker import (
    AbortTaskRunError,
    ChatChunkTooLargeError,
    StreamError,
    StreamWriteError,
    SubtaskUnwrapError,
    WaitpointTimeoutError,
    chat,
    context,
    sessions,
    streams,
    sync,
    tasks,
)
from td_worker.tasks import RunHandle, RunResult


@dataclass
class Question:
    """What a task is asked."""

    text: str
    urgent: bool = False


answers = streams.define("answers")
progress = sync.streams.define("progress")


async def ask_model(question: str) -> AsyncIterator[str]:
    """Stand for a model provider's client."""
    for word in question.split():
        yield word


def ask_model_blocking(question: str) -> Iterator[str]:
    """Stand for one."""
    yield from question.split()


# --------------------------------------------------------------------------- async tasks


async def answer(payload: Question) -> dict[str, int]:
    """Write, flush, and say what was written."""
    async with answers.writer(target="root") as writer:
        assert_type(writer, streams.Writer)
        async for token in ask_model(payload.text):
            await writer.write({"token": token})
        writer.merge(ask_model("merged"))
        await writer.flush()

    return {"last": int(assert_type(writer.last_event_id, str | None) or 0)}


async def pipe_in_every_form(payload: Question) -> str | None:
    """Pipe async and plain sources, with and without a key."""
    handle = streams.pipe("answers", ask_model(payload.text), target="parent")
    assert_type(handle, streams.StreamHandle)
    assert_type(streams.pipe(ask_model(payload.text)), streams.StreamHandle)
    assert_type(streams.pipe("numbers", range(3)), streams.StreamHandle)
    assert_type(answers.pipe(ask_model(payload.text), target="root"), streams.StreamHandle)
    if payload.urgent:
        handle.abort()
    mirrored = streams.pipe(ask_model(payload.text), mirror=True)
    assert_type(mirrored.stream, AsyncGenerator[Any, None])

    return assert_type(await handle.wait(), str | None)


async def append_and_read(payload: Question) -> list[object]:
    """Append single records and read another run's stream."""
    assert_type(await streams.append("log", {"text": payload.text}), int)
    assert_type(await streams.append(payload), int)
    assert_type(await answers.append(payload.text, target="run_06h0h0x33g2pkmv1a2nsed2za"), int)
    chunks = streams.read(
        context.run.root_id or context.run.id, "answers", start_index=5, timeout=30
    )
    assert_type(chunks, AsyncGenerator[Any, None])
    async with aclosing(answers.read(context.run.id, timeout=timedelta(minutes=1))) as mine:
        found = [chunk async for chunk in mine]

    return [*found, *[chunk async for chunk in chunks]]


async def survive_failures(payload: Question) -> int:
    """Tell apart what can go wrong with a stream."""
    writer = streams.writer("answers")
    try:
        await writer.write(payload)
        await writer.wait()
    except ChatChunkTooLargeError as error:
        return assert_type(error.chunk_size, int)
    except StreamWriteError as error:
        return assert_type(error.acked, int)
    except StreamError as error:
        raise AbortTaskRunError(str(error)) from error

    return 0


async def fan_out(payload: list[str]) -> list[object]:
    """Trigger other runs, and wait for some of them."""
    handle = await tasks.trigger("answer", Question(payload[0]), idempotency_key="first")
    assert_type(handle, RunHandle)
    assert_type(handle.id, str)
    assert_type(await tasks.batch_trigger("answer", payload), list[RunHandle])
    result = await tasks.trigger_and_wait("answer", payload[0])
    assert_type(result, RunResult)
    if not result.ok and result.error is not None:
        assert_type(result.error.message, str)
    results = await tasks.batch_trigger_and_wait("answer", (Question(text) for text in payload))
    assert_type(results, list[RunResult])

    return [one.unwrap() for one in results]


approvals = streams.input("approvals")


async def serve_session(payload: dict[str, str]) -> list[object]:
    """Answer on a session what comes in, until nothing does for a day."""
    session = sessions.open(payload["sessionId"])
    stop = session.in_.on(lambda message: message == "stop")
    assert_type(stop.off(), None)
    result = await session.in_.wait(timeout=86_400)
    assert_type(result.ok, bool)
    assert_type(result.seq_num, int | None)
    try:
        question = Question(result.unwrap()["text"])
    except WaitpointTimeoutError:
        return []
    async with session.out.writer() as writer:
        assert_type(writer, streams.Writer)
        async for token in ask_model(question.text):
            await writer.write({"token": token})
    assert_type(session.out.pipe(ask_model(question.text)), streams.StreamHandle)
    assert_type(await session.channel("logs").out.append({"answered": question}), int)
    assert_type(await session.out.write_control("turn-complete", {"a": "b"}), int)
    assert_type(await session.out.trim_to(5), int)
    assert_type(await session.in_.send({"text": "and now?"}), int | None)
    assert_type(session.in_.last_dispatched_seq_num, int | None)
    more = await session.in_.wait_with_idle_timeout(30, timeout=3600, on_suspend=lambda: None)
    found = session.out.read(last_event_id=4, on_control=lambda control: print(control.subtype))
    assert_type(found, AsyncGenerator[Any, None])
    async with aclosing(found):
        return [more.output, *[data async for data in found]]


async def keep_sessions(payload: str) -> str | None:
    """Start, find, change and end sessions."""
    config = sessions.TriggerConfig(base_payload={"model": "small"}, max_attempts=2)
    started = await sessions.start("support", "answer", external_id=payload, config=config)
    assert_type(started, sessions.StartedSession)
    assert_type(started.created_at, datetime)
    assert_type(await sessions.retrieve(payload), sessions.Session)
    assert_type(await sessions.update(payload, tags=["vip"], metadata=None), sessions.Session)
    async for session in sessions.list(status="ACTIVE", tags=["vip"]):
        assert_type(session, sessions.Session)
    closed = await sessions.close(payload, reason="done")

    return assert_type(closed.closed_reason, str | None)


async def hand_over(payload: str) -> sessions.SessionChannel:
    """Start a session, look at what is there, and go on behind it."""
    started = await sessions.start("support", "answer", external_id=payload)
    assert_type(started.run_id, str)
    assert_type(started.public_access_token, str)
    assert_type(started.is_cached, bool)
    assert_type(started.tags, tuple[str, ...])
    assert_type(started.trigger_config, sessions.TriggerConfig | None)
    session = assert_type(sessions.open(started.id), sessions.SessionHandle)
    incoming = assert_type(session.in_, sessions.SessionIn)
    assert_type(session.out, sessions.SessionOut)
    found = assert_type(await session.out.records(), list[sessions.Record | sessions.Control])
    for record in found:
        if isinstance(record, sessions.Control):
            assert_type(record.headers, Mapping[str, str])
        else:
            assert_type(record.timestamp, int)
    incoming.resume_after(max(record.seq_num for record in found))
    incoming.ignore_until(1_700_000_000_000)
    heard = incoming.on_record(lambda record: record.seq_num > 5)
    assert_type(heard, sessions.Subscription)
    assert_type(await incoming.once(timeout=1), sessions.InputResult)
    await session.out.reset()

    return assert_type(session.channel("logs"), sessions.SessionChannel)


async def approve(payload: str) -> object:
    """Wait for a client's word, and pass it on."""

    async def note(decision: dict[str, bool]) -> None:
        await streams.append("log", decision)

    approvals.on(note).off()
    decision = (await approvals.once(timeout=30)).unwrap()
    await approvals.send(payload, decision)

    return approvals.peek()


async def know_who_i_am(payload: None) -> dict[str, object]:
    """Look into the context."""
    return {
        "run": assert_type(context.run.id, str),
        "parent": assert_type(context.run.parent_id, str | None),
        "root": assert_type(context.run.root_id, str | None),
        "attempt": assert_type(context.attempt.number, int),
        "task": assert_type(context.task.id, str),
    }


# --------------------------------------------------------------------------- chat agents


@chat.agent
async def converse(turn: chat.Turn) -> AsyncIterator[object]:
    """Answer a message: with text, and with whatever else JSON can say."""
    assert_type(turn.message, dict[str, Any] | None)
    assert_type(turn.stop.is_set(), bool)
    async for chunk in chat.text(ask_model(turn.text)):
        yield chunk
    handle = await chat.response.write({"type": "data-step", "data": turn.number})
    assert_type(handle, chat.WriteHandle)
    await handle.wait()
    assert_type(handle.error, Exception | None)
    assert_type(await chat.stream.append({"type": "data-note"}), int)
    await chat.stream.pipe(ask_model(turn.text)).wait()
    more = await chat.messages.once(timeout=5)
    assert_type(more.ok, bool)
    assert_type(chat.messages.peek(), chat.ChatPayload | None)
    if chat.is_stopped():
        chat.end_run()


def note_turn(turn: chat.Turn) -> None:
    """Keep what was said."""
    assert_type(turn.response, dict[str, Any] | None)
    assert_type(turn.error, Exception | None)


@chat.agent(max_turns=5, idle_timeout=timedelta(minutes=1), on_turn_complete=note_turn)
def converse_blocking(turn: chat.Turn) -> Iterator[object]:
    """Answer from a plain generator."""
    yield from sync.chat.text(ask_model_blocking(turn.text))
    sync.chat.response.write({"type": "data-step"}).wait()


assert_type(converse, chat.Agent)
assert_type(converse_blocking, chat.Agent)


@chat.agent
async def take_part(turn: chat.Turn) -> AsyncIterator[object]:
    """Look at all that a turn has, and listen beside it."""
    assert_type(turn.session, sessions.SessionHandle)
    assert_type(turn.messages, list[chat.UIMessage])
    assert_type(turn.stopped, bool)
    assert_type(turn.continuation, bool)
    assert_type(turn.previous_run_id, str | None)
    heard = chat.messages.on(lambda message: message.trigger == "action")
    assert_type(heard, chat.Observing)
    turn.stop.on_stop(heard.off)
    waited = await chat.messages.wait_with_idle_timeout(30, timeout=3600)
    assert_type(waited, sessions.InputResult)
    found = chat.stream.read(last_event_id=turn.last_event_id)
    assert_type(found, AsyncGenerator[Any, None])
    async with aclosing(found):
        async for chunk in found:
            yield chunk
    async with chat.stream.writer() as writer:
        assert_type(writer, streams.Writer)
        await writer.write({"type": "finish"})


async def announce(payload: str) -> None:
    """Write to a chat from any task."""
    async with chat.bind(payload):
        signal = await chat.create_stop_signal()
        assert_type(signal, chat.StopSignal)
        assert_type(signal.cleanup(), None)
        chat.response.write("hello")


# --------------------------------------------------------------------------- plain def tasks


def answer_blocking(payload: Question) -> str | None:
    """Write and pipe without asyncio."""
    with progress.writer(target="root") as writer:
        assert_type(writer, sync.streams.Writer)
        for token in ask_model_blocking(payload.text):
            writer.write({"token": token})
        writer.flush()
        writer.merge(ask_model_blocking("merged"))
    handle = sync.streams.pipe("answers", ask_model_blocking(payload.text), mirror=True)
    assert_type(handle.stream, Generator[Any, None, None])
    assert_type(handle, sync.streams.StreamHandle)
    assert_type(progress.pipe([1, 2, 3]), sync.streams.StreamHandle)
    assert_type(sync.streams.append("log", payload), int)
    assert_type(progress.append({"done": 1}), int)

    return assert_type(handle.wait(), str | None)


def read_blocking(payload: str) -> list[object]:
    """Read another run's stream."""
    chunks = sync.streams.read(payload, "progress", timeout=timedelta(seconds=30))
    assert_type(chunks, Generator[Any, None, None])
    with closing(progress.read(payload, start_index=0)) as mine:
        return [*mine, *chunks]


def serve_session_blocking(payload: dict[str, str]) -> list[object]:
    """Answer on a session without asyncio."""
    session = sync.sessions.open(payload["sessionId"])
    question = Question(session.in_.wait(timeout=86_400).unwrap()["text"])
    with session.out.writer() as writer:
        assert_type(writer, sync.streams.Writer)
        writer.write({"token": question.text})
    assert_type(session.out.pipe(ask_model_blocking("again")), sync.streams.StreamHandle)
    assert_type(session.channel("logs").out.append("line"), int)
    assert_type(session.out.write_control("turn-complete"), int)
    assert_type(session.in_.send("text"), int | None)
    assert_type(sync.sessions.start("support", "answer"), sync.sessions.StartedSession)
    assert_type(list(sync.sessions.list(status="CLOSED")), list[sync.sessions.Session])
    assert_type(sync.streams.input("approvals").once(timeout=1).ok, bool)
    found = session.out.read(timeout=timedelta(minutes=1))
    assert_type(found, Generator[Any, None, None])

    return list(found)


def hand_over_blocking(payload: str) -> sync.sessions.SessionChannel:
    """Look at what a session has, and go on behind it, without asyncio."""
    session = assert_type(sync.sessions.open(payload), sync.sessions.SessionHandle)
    incoming = assert_type(session.in_, sync.sessions.SessionIn)
    assert_type(session.out, sync.sessions.SessionOut)
    found = session.out.records(after=4)
    assert_type(found, list[sync.sessions.Record | sync.sessions.Control])
    incoming.resume_after(5)
    assert_type(incoming.on(print), sync.sessions.Subscription)
    more = incoming.wait_with_idle_timeout(30, timeout=3600, skip_suspend=True)
    assert_type(more, sync.sessions.InputResult)
    assert_type(session.out.trim_to(5), int)
    session.out.reset()
    assert_type(sync.sessions.retrieve(payload), sync.sessions.Session)
    assert_type(sync.sessions.update(payload, tags=["vip"]), sync.sessions.Session)
    assert_type(sync.sessions.close(payload, reason="done"), sync.sessions.Session)
    sync.streams.input("approvals").send(context.run.id, {"yes": True})

    return assert_type(session.channel("logs"), sync.sessions.SessionChannel)


def serve_chat_blocking(payload: str) -> object:
    """Serve a chat from a plain task of any kind."""
    with sync.chat.bind(payload):
        signal = assert_type(sync.chat.create_stop_signal(), sync.chat.StopSignal)
        signal.reset()
        assert_type(sync.chat.stream.pipe(["a", "b"]), sync.streams.StreamHandle)
        assert_type(sync.chat.stream.append({"type": "finish"}), int)
        with sync.chat.stream.writer() as writer:
            assert_type(writer, sync.streams.Writer)
        found = sync.chat.stream.read(timeout=1)
        assert_type(found, Generator[Any, None, None])
        assert_type(sync.chat.messages.peek(), sync.chat.ChatPayload | None)
        result = sync.chat.messages.wait(timeout=60)
        if sync.chat.is_stopped():
            sync.chat.end_run()

        return result.output


def fan_out_blocking(payload: list[str]) -> object:
    """Trigger other runs, and stop when asked to."""
    assert_type(sync.tasks.trigger("answer", payload[0]), RunHandle)
    assert_type(sync.tasks.batch_trigger("answer", payload), list[RunHandle])
    results = sync.tasks.batch_trigger_and_wait("answer", payload)
    assert_type(results, list[RunResult])
    if assert_type(sync.context.is_cancelled(), bool):
        return None
    try:
        return sync.tasks.trigger_and_wait("answer", payload[0]).unwrap()
    except SubtaskUnwrapError as error:
        return assert_type(error.status, str)


# --------------------------------------------------------------------------- the cache alone


class MyMinter:
    """A minter of one's own, without asyncio."""

    def mint(self, slot: Slot) -> Grant:
        """Ask somebody."""
        raise NotImplementedError(slot.parts)


class MyAsyncMinter:
    """A minter of one's own, on an event loop."""

    async def mint(self, slot: Slot) -> Grant:
        """Ask somebody."""
        raise NotImplementedError(slot.kind)


async def share_credentials(folder: Path, minter: MyMinter | MyAsyncMinter) -> Credential:
    """Use the cache from code that is no task."""
    takes: AsyncMinter | Minter = minter
    cache = CredentialCache(folder, origin="https://api.trigger.dev", api_key="k", minter=takes)
    assert_type(cache, CredentialCache)
    slot = Slot.run("run_06h0h0x33g2pkmv1a2nsed2za", "answers")
    assert_type(cache.peek(slot), Credential | None)
    assert_type(cache.get_blocking(slot), Credential)
    credential = await cache.get(slot)
    assert_type(await cache.evict(slot, credential.id, reason="403"), bool)

    return assert_type(credential, Credential)
