"""What the official Python client does in each test: `python scenarios.py NAME OPTIONS`.

Runs in an environment without td-runtime. OPTIONS is JSON with at least `url`, `token`, `basin` and
`stream`; the last line printed is what the scenario returned, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

from s2_sdk import (
    S2,
    AccessTokenScope,
    AppendInput,
    BasinConfig,
    Batching,
    CommandRecord,
    Compression,
    Endpoints,
    ExactMatch,
    FencingTokenMismatchError,
    Operation,
    PrefixMatch,
    ReadLimit,
    ReadUnwrittenError,
    Record,
    S2ServerError,
    SeqNum,
    SeqNumMismatchError,
    StreamConfig,
    TailOffset,
    Timestamp,
    Timestamping,
    TimestampingMode,
)

Scenario = Callable[["Options"], Coroutine[Any, Any, Any]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


class Options:
    """What the test said."""

    def __init__(self, **options: Any) -> None:
        self.url: str = options["url"]
        self.token: str = options["token"]
        self.basin: str = options["basin"]
        self.stream: str = options["stream"]
        self.compression = Compression[options.get("compression", "NONE")]
        self.more = options

    def client(self, token: str | None = None) -> S2:
        return S2(
            token or self.token,
            endpoints=Endpoints(account=self.url, basin=self.url),
            compression=self.compression,
        )

    def fault(self, **fault: Any) -> None:
        """Ask the gateway for a fault."""
        request = urllib.request.Request(
            f"{self.url}/platform/v1/faults",
            data=json.dumps(fault).encode(),
            headers={"authorization": f"Bearer {self.more['secret_key']}"},
            method="POST",
        )
        urllib.request.urlopen(request).close()


def records(*bodies: str) -> AppendInput:
    return AppendInput(records=[Record(body=body.encode()) for body in bodies])


def shown(batch) -> list[Any]:
    return [
        [r.seq_num, r.body.decode(), [[n.decode(), v.decode()] for n, v in r.headers]]
        for r in batch.records
    ]


def said(error: S2ServerError) -> dict[str, Any]:
    return {"status": error.status_code, "code": error.code}


async def collect(session, count: int) -> list[Any]:
    found: list[Any] = []
    async with session:
        async for batch in session:
            found += shown(batch)
            if len(found) >= count:
                break
    return found


@scenario
async def append_and_read(options: Options):
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]
        large = "x" * 5000
        first = await stream.append(
            AppendInput(
                records=[
                    Record(body="é".encode(), headers=[(b"kind", b"text"), (b"n", b"1")]),
                    Record(body=b"", timestamp=1234),
                    Record(body=large.encode()),
                ]
            )
        )
        second = await stream.append(AppendInput(records=[Record(body=b"z")], match_seq_num=3))
        tail = await stream.check_tail()
        batch = await stream.read(start=SeqNum(0))
        return {
            "acks": [[a.start.seq_num, a.end.seq_num, a.tail.seq_num] for a in (first, second)],
            "tail": tail.seq_num,
            "records": shown(batch),
            "batch_tail": batch.tail and batch.tail.seq_num,
        }


@scenario
async def sessions(options: Options):
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]
        async with stream.append_session() as session:
            tickets = [
                await session.submit(records(*(f"{batch}.{i}" + "y" * 300 for i in range(10))))
                for batch in range(50)
            ]
            acks = [await ticket for ticket in tickets]
        found = await collect(stream.read_session(start=SeqNum(0), limit=ReadLimit(count=500)), 500)
        return {
            "ends": [ack.end.seq_num for ack in acks],
            "bodies": [body.rstrip("y") for _, body, _ in found],
        }


@scenario
async def producer(options: Options):
    count = options.more["count"]
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]
        async with stream.producer(match_seq_num=0, batching=Batching(max_records=100)) as writer:
            tickets = [await writer.submit(Record(body=str(i).encode())) for i in range(count)]
            acks = [await ticket for ticket in tickets]
        found = await collect(
            stream.read_session(start=SeqNum(0), limit=ReadLimit(count=count)), count
        )
        return {
            "in_order": [ack.seq_num for ack in acks] == list(range(count)),
            "complete": [int(body) for _, body, _ in found] == list(range(count)),
        }


@scenario
async def follow(options: Options):
    """A read session that was there first gets what an append session writes."""
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]
        await stream.append(records("0"))
        reader = stream.read_session(start=SeqNum(0))
        reading = asyncio.create_task(collect(reader, 20))
        await reader.caught_up()
        async with stream.append_session() as session:
            for i in range(1, 20):
                await (await session.submit(records(str(i))))
        found = await asyncio.wait_for(reading, 20)
        return [body for _, body, _ in found]


@scenario
async def starts(options: Options):
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]
        await stream.append(
            AppendInput(records=[Record(body=str(t).encode(), timestamp=t) for t in (10, 20, 30)])
        )

        async def bodies(**asked: Any) -> list[str]:
            return [body for _, body, _ in shown(await stream.read(**asked))]

        answers: dict[str, Any] = {
            "timestamp": await bodies(start=Timestamp(15)),
            "tail_offset": await bodies(start=TailOffset(1)),
            "until": await bodies(start=SeqNum(0), until_timestamp=30),
            "count": await bodies(start=SeqNum(0), limit=ReadLimit(count=2)),
            "bytes": await bodies(start=SeqNum(0), limit=ReadLimit(bytes=20)),
            "clamped_wait": await bodies(start=SeqNum(99), clamp_to_tail=True, wait=1),
        }
        beyond: dict[str, dict[str, Any]] = {
            "at_tail": {"start": SeqNum(3)},
            "beyond": {"start": SeqNum(9), "wait": 1},
        }
        for name, asked in beyond.items():
            try:
                await stream.read(**asked)
            except ReadUnwrittenError as error:
                answers[name] = [error.status_code, error.tail.seq_num]
        session = stream.read_session(start=SeqNum(0), until_timestamp=30)
        answers["session_until"] = [body for _, body, _ in await collect(session, 9)]

        return answers


@scenario
async def conditions(options: Options):
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]
        await stream.append(AppendInput(records=[CommandRecord.fence("ours")]))
        outcomes: dict[str, Any] = {}
        tried: dict[str, dict[str, Any]] = {
            "fenced_out": {"fencing_token": "theirs"},
            "right_token": {"fencing_token": "ours"},
            "wrong_place": {"match_seq_num": 9},
        }
        for name, asked in tried.items():
            try:
                ack = await stream.append(AppendInput(records=[Record(body=b"x")], **asked))
                outcomes[name] = ack.start.seq_num
            except FencingTokenMismatchError as error:
                outcomes[name] = [error.status_code, error.expected_fencing_token]
            except SeqNumMismatchError as error:
                outcomes[name] = [error.status_code, error.expected_seq_num]

        async def fail_in_session():
            async with stream.append_session() as session:
                tickets = [
                    await session.submit(records("good")),
                    await session.submit(
                        AppendInput(records=[Record(body=b"bad")], match_seq_num=77)
                    ),
                    await session.submit(records("after")),
                ]
                return await asyncio.gather(*tickets, return_exceptions=True)

        try:
            await fail_in_session()
        except SeqNumMismatchError as error:
            outcomes["in_session"] = [error.status_code, error.expected_seq_num]
        batch = await stream.read(start=SeqNum(0))
        outcomes["stored"] = [body for _, body, _ in shown(batch)]

        return outcomes


@scenario
async def trim(options: Options):
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]
        await stream.append(records("0", "1", "2"))
        ack = await stream.append(AppendInput(records=[CommandRecord.trim(2)]))
        batch = await stream.read(start=SeqNum(0))
        plain = await stream.read(start=SeqNum(0), ignore_command_records=True)
        return {
            "seq_num": ack.start.seq_num,
            "left": [seq for seq, _, _ in shown(batch)],
            "plain": [seq for seq, _, _ in shown(plain)],
        }


@scenario
async def refused(options: Options):
    """One request of each kind; how each was answered."""
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]

        async def append_session():
            async with stream.append_session() as session:
                await (await session.submit(records("x")))

        outcomes: dict[str, Any] = {}
        for name, call in {
            "append": lambda: stream.append(records("x")),
            "append_session": append_session,
            "read": lambda: stream.read(start=SeqNum(0)),
            "read_session": lambda: collect(stream.read_session(start=SeqNum(0)), 1),
            "tail": stream.check_tail,
            "trim": lambda: stream.append(AppendInput(records=[CommandRecord.trim(1)])),
            "fence": lambda: stream.append(AppendInput(records=[CommandRecord.fence("f")])),
        }.items():
            try:
                await asyncio.wait_for(call(), 20)
                outcomes[name] = "allowed"
            except S2ServerError as error:
                outcomes[name] = said(error)
        return outcomes


@scenario
async def append_session_ends(options: Options):
    """The token ends while the session is idle; what was acknowledged before stays so."""
    async with options.client() as s2:
        stream = s2[options.basin][options.stream]
        session = stream.append_session()
        ack = await (await session.submit(records("before")))
        options.fault(kind=options.more["kind"])
        for _ in range(100):
            try:
                await (await session.submit(records("after")))
            except S2ServerError as error:
                return {"acked": ack.end.seq_num, **said(error)}
        return "never refused"


@scenario
async def read_session_ends(options: Options):
    """The reader's token ends while its session waits at the tail."""
    is_expiring = options.more["kind"] == "expire"
    async with options.client() as s2:
        await s2[options.basin][options.stream].append(records("first"))
        token = await s2.issue_access_token(
            f"interop/{options.stream}",
            scope=AccessTokenScope(
                basins=PrefixMatch(""), streams=PrefixMatch(""), ops=[Operation.READ]
            ),
            expires_at=datetime.now(UTC) + timedelta(seconds=5 if is_expiring else 999),
        )
        async with options.client(token) as other:
            session = other[options.basin][options.stream].read_session(start=SeqNum(0))
            first = await anext(session)
            await session.caught_up()
            if not is_expiring:
                await s2.revoke_access_token(f"interop/{options.stream}")
            try:
                await asyncio.wait_for(anext(session), 20)
            except S2ServerError as error:
                return {"read": len(first.records), **said(error)}
        return "never refused"


@scenario
async def administer(options: Options):
    """Basins, streams and tokens, as far as an owner goes."""
    async with options.client() as s2:
        seen: dict[str, Any] = {}
        name = "interop-basin"
        info = await s2.create_basin(
            name, config=BasinConfig(create_stream_on_append=True, create_stream_on_read=False)
        )
        seen["created"] = info.name
        try:
            await s2.create_basin(name)
        except S2ServerError as error:
            seen["again"] = said(error)
        both = BasinConfig(create_stream_on_append=True, create_stream_on_read=True)
        seen["ensured"] = [
            (await s2.ensure_basin(name)).status.name,
            (await s2.ensure_basin(name, config=both)).status.name,
            (await s2.ensure_basin(name, config=both)).status.name,
        ]
        seen["basins"] = [b.name async for b in s2.list_all_basins(prefix="interop")]
        config = await s2.reconfigure_basin(name, config=BasinConfig(create_stream_on_read=False))
        seen["config"] = [config.create_stream_on_append, config.create_stream_on_read]
        basin = s2[name]
        for stream in ("a/1", "a/2", "b"):
            await basin.create_stream(stream)
        seen["ensured_stream"] = [
            (await basin.ensure_stream("c")).status.name,
            (await basin.ensure_stream("c")).status.name,
        ]
        seen["streams"] = [s.name async for s in basin.list_all_streams()]
        page = await basin.list_streams(prefix="a/", limit=1)
        seen["page"] = [[s.name for s in page.items], page.has_more]
        arrival = StreamConfig(
            retention_policy=3600, timestamping=Timestamping(mode=TimestampingMode.ARRIVAL)
        )
        await basin.reconfigure_stream("b", config=arrival)
        got = await basin.get_stream_config("b")
        seen["stream_config"] = [got.retention_policy, got.timestamping.mode.value]
        ack = await basin["b"].append(AppendInput(records=[Record(body=b"x", timestamp=5)]))
        seen["arrival"] = ack.start.timestamp > 5
        await basin["made-by-append"].append(records("x"))
        try:
            await basin["nowhere"].check_tail()
        except S2ServerError as error:
            seen["missing"] = said(error)
        await basin.delete_stream("a/1")
        seen["left"] = [s.name async for s in basin.list_all_streams(prefix="a/")]
        seen["locations"] = [location.name for location in await s2.list_locations()]
        await s2.delete_basin(name)
        seen["basins_left"] = [b.name async for b in s2.list_all_basins(prefix="interop")]
        return seen


@scenario
async def tokens(options: Options):
    """A token with its own scope, prefix and end."""
    async with options.client() as s2:
        seen: dict[str, Any] = {}
        basin = options.basin
        token = await s2.issue_access_token(
            "interop/reader",
            scope=AccessTokenScope(
                basins=ExactMatch(basin),
                streams=PrefixMatch("tenant/"),
                ops=[Operation.APPEND, Operation.READ, Operation.CREATE_STREAM],
            ),
            auto_prefix_streams=True,
        )
        short = await s2.issue_access_token(
            "interop/short",
            scope=AccessTokenScope(
                basins=PrefixMatch(""), streams=PrefixMatch(""), ops=[Operation.CHECK_TAIL]
            ),
            expires_at=datetime.now(UTC) - timedelta(seconds=1),
        )
        seen["ids"] = [t.id async for t in s2.list_all_access_tokens(prefix="interop/")]
        async with options.client(token) as tenant:
            await tenant[basin]["mine"].append(records("hello"))
            seen["read"] = shown(await tenant[basin]["mine"].read(start=SeqNum(0)))
            for name, call in {
                "tail": lambda: tenant[basin]["mine"].check_tail(),
                "other_basin": lambda: tenant["other-basin"]["mine"].append(records("x")),
                "admin": lambda: tenant.list_basins(),
            }.items():
                try:
                    await call()
                except S2ServerError as error:
                    seen[name] = said(error)
            seen["whole_name"] = shown(await s2[basin]["tenant/mine"].read(start=SeqNum(0)))
            await s2.revoke_access_token("interop/reader")
            try:
                await tenant[basin]["mine"].append(records("late"))
            except S2ServerError as error:
                seen["revoked"] = said(error)
        async with options.client(short) as late:
            try:
                await late[basin]["mine"].check_tail()
            except S2ServerError as error:
                seen["expired"] = said(error)
        return seen


def main() -> None:
    _, name, options = sys.argv
    print(json.dumps(asyncio.run(SCENARIOS[name](Options(**json.loads(options))))))


if __name__ == "__main__":
    main()
