"""One process that writes with the Producer of s2-sdk: `python producer.py MODE COUNT OPTIONS`.

Runs in an environment without td-runtime; as ours.py otherwise. Every record has the body that ours
has, made once: encoding costs it nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from s2_sdk import S2, Endpoints, Record

BODY = b'{"data":{"type":"text-delta","id":"t","delta":"a word or two "},"id":"AbCdEfGhIjKl-12345"}'


async def main() -> None:
    count, options = int(sys.argv[2]), json.loads(sys.argv[3])
    url = options["url"]
    async with S2(options["token"], endpoints=Endpoints(account=url, basin=url)) as client:
        stream = client.basin(options["basin"]).stream(options["stream"])
        async with stream.producer() as producer:
            await (await producer.submit(Record(body=BODY)))
            print("ready", flush=True)
            sys.stdin.readline()
            cpu, began = time.process_time(), time.monotonic()
            for _ in range(count):
                ticket = await producer.submit(Record(body=BODY))
            enqueued = time.monotonic()
            await producer.flush()
            await ticket
            ended = time.monotonic()
            spent = time.process_time() - cpu
    told = {"began": began, "enqueued": enqueued, "ended": ended, "cpu": spent}
    print(json.dumps(told))


asyncio.run(main())
