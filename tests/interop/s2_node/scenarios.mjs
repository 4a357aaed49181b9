// scenarios.mjs NAME OPTIONS: what the official npm client of the stream store does in each test.
// OPTIONS is JSON with at least url, token, basin and stream; prints what the scenario returned.
import { AppendInput, AppendRecord, BatchTransform, Producer, S2 } from "@s2-dev/streamstore";

const [name, json] = process.argv.slice(2);
const options = JSON.parse(json);

function client(token = options.token) {
  return new S2({
    accessToken: token,
    endpoints: { account: options.url, basin: options.url },
    compression: options.compression ?? "none",
  });
}

function stream(token) {
  const transport = options.transport ? { forceTransport: options.transport } : undefined;
  return client(token).basin(options.basin).stream(options.stream, transport);
}

const input = (bodies, conditions) =>
  AppendInput.create(
    bodies.map((body) => AppendRecord.string({ body })),
    conditions,
  );

const said = (error) => ({ status: error.status, code: error.code });

async function attempt(call) {
  try {
    await call();
    return "allowed";
  } catch (error) {
    return said(error);
  }
}

async function collect(session, count) {
  const found = [];
  for await (const record of session) {
    found.push(record);
    if (found.length >= count) break;
  }
  return found;
}

async function fault(kind) {
  const answer = await fetch(`${options.url}/platform/v1/faults`, {
    method: "POST",
    headers: { authorization: `Bearer ${options.secretKey}` },
    body: JSON.stringify({ kind }),
  });
  if (!answer.ok) throw new Error(await answer.text());
}

const scenarios = {
  async appendAndRead() {
    const s = stream();
    const text = await s.append(
      AppendInput.create([
        AppendRecord.string({ body: "é", headers: [["kind", "text"]] }),
        AppendRecord.string({ body: "x".repeat(5000) }),
      ]),
    );
    const bytes = await s.append(
      AppendInput.create([AppendRecord.bytes({ body: new Uint8Array([0, 255]) })], {
        matchSeqNum: 2,
      }),
    );
    const start = { from: { seqNum: 0 } };
    const asText = await s.read({ start });
    const asBytes = await s.read({ start }, { as: "bytes" });
    return {
      acks: [text, bytes].map((ack) => [ack.start.seqNum, ack.end.seqNum, ack.tail.seqNum]),
      tail: (await s.checkTail()).tail.seqNum,
      text: asText.records.map((r) => [r.seqNum, r.body, r.headers ?? []]),
      last: [...asBytes.records[2].body],
    };
  },

  async sessions() {
    const s = stream();
    const session = await s.appendSession();
    const tickets = [];
    for (let batch = 0; batch < 50; batch++) {
      const bodies = [...Array(10).keys()].map((i) => `${batch}.${i}${"y".repeat(300)}`);
      tickets.push(await session.submit(input(bodies)));
    }
    const acks = await Promise.all(tickets.map((ticket) => ticket.ack()));
    await session.close();
    const reader = await s.readSession({
      start: { from: { seqNum: 0 } },
      stop: { limits: { count: 500 } },
    });
    const found = await collect(reader, 500);
    return {
      ends: acks.map((ack) => ack.end.seqNum),
      bodies: found.map((record) => record.body.replace(/y+$/, "")),
    };
  },

  async producer() {
    const s = stream();
    const producer = new Producer(
      new BatchTransform({ lingerDurationMillis: 5, maxBatchRecords: 100, matchSeqNum: 0 }),
      await s.appendSession(),
    );
    const tickets = [];
    for (let i = 0; i < options.count; i++) {
      tickets.push(await producer.submit(AppendRecord.string({ body: String(i) })));
    }
    const acks = await Promise.all(tickets.map((ticket) => ticket.ack()));
    await producer.close();
    const reader = await s.readSession({
      start: { from: { seqNum: 0 } },
      stop: { limits: { count: options.count } },
    });
    const found = await collect(reader, options.count);
    return {
      inOrder: acks.every((ack, index) => ack.seqNum() === index),
      complete:
        found.length === options.count && found.every((r, index) => r.body === String(index)),
    };
  },

  async follow() {
    const s = stream();
    await s.append(input(["0"]));
    const reading = collect(await s.readSession({ start: { from: { seqNum: 0 } } }), 20);
    const session = await s.appendSession();
    for (let i = 1; i < 20; i++) await (await session.submit(input([String(i)]))).ack();
    await session.close();
    return (await reading).map((record) => record.body);
  },

  async conditions() {
    const s = stream();
    await s.append(AppendInput.create([AppendRecord.fence("ours")]));
    const outcomes = {};
    const tried = {
      fencedOut: { fencingToken: "theirs" },
      rightToken: { fencingToken: "ours" },
      wrongPlace: { matchSeqNum: 9 },
    };
    for (const [key, conditions] of Object.entries(tried)) {
      try {
        outcomes[key] = (await s.append(input(["x"], conditions))).start.seqNum;
      } catch (error) {
        outcomes[key] = [error.status, error.expectedFencingToken ?? error.expectedSeqNum];
      }
    }
    const session = await s.appendSession();
    const tickets = [];
    for (const [body, conditions] of [["good"], ["bad", { matchSeqNum: 77 }], ["after"]]) {
      tickets.push(session.submit(input([body], conditions)).then((ticket) => ticket.ack()));
    }
    const settled = await Promise.allSettled(tickets);
    outcomes.inSession = settled.map((one) => one.value?.start.seqNum ?? one.reason.status);
    await session.close().catch(() => undefined);
    const batch = await s.read({ start: { from: { seqNum: 0 } } });
    outcomes.stored = batch.records.map((record) => record.body);
    try {
      await s.read({ start: { from: { seqNum: 99 } } });
    } catch (error) {
      outcomes.beyond = [error.status, error.tail?.seqNum];
    }
    return outcomes;
  },

  async trim() {
    const s = stream();
    await s.append(input(["0", "1", "2"]));
    const ack = await s.append(AppendInput.create([AppendRecord.trim(2)]));
    const start = { from: { seqNum: 0 } };
    const all = await s.read({ start });
    const plain = await s.read({ start, ignoreCommandRecords: true });
    return {
      seqNum: ack.start.seqNum,
      left: all.records.map((record) => record.seqNum),
      plain: plain.records.map((record) => record.seqNum),
    };
  },

  async refused() {
    const s = stream();
    const start = { from: { seqNum: 0 } };
    return {
      append: await attempt(() => s.append(input(["x"]))),
      bytes: await attempt(() =>
        s.append(AppendInput.create([AppendRecord.bytes({ body: new Uint8Array([1]) })])),
      ),
      appendSession: await attempt(async () => {
        const session = await s.appendSession();
        await (await session.submit(input(["x"]))).ack();
        await session.close();
      }),
      read: await attempt(() => s.read({ start })),
      readSession: await attempt(async () => collect(await s.readSession({ start }), 1)),
      tail: await attempt(() => s.checkTail()),
      trim: await attempt(() => s.append(AppendInput.create([AppendRecord.trim(1)]))),
      fence: await attempt(() => s.append(AppendInput.create([AppendRecord.fence("f")]))),
    };
  },

  async appendSessionEnds() {
    const session = await stream().appendSession();
    const ack = await (await session.submit(input(["before"]))).ack();
    await fault(options.kind);
    try {
      for (let i = 0; i < 100; i++) await (await session.submit(input(["after"]))).ack();
    } catch (error) {
      return { acked: ack.end.seqNum, ...said(error) };
    }
    return "never refused";
  },

  async readSessionEnds() {
    const s2 = client();
    await s2.basin(options.basin).stream(options.stream).append(input(["first"]));
    const id = `interop-node/${options.stream}`;
    const { accessToken } = await s2.accessTokens.issue({
      id,
      scope: { basins: { prefix: "" }, streams: { prefix: "" }, ops: ["read"] },
    });
    let read = 0;
    try {
      const session = await stream(accessToken).readSession({ start: { from: { seqNum: 0 } } });
      for await (const _ of session) {
        read += 1;
        await s2.accessTokens.revoke({ id });
      }
    } catch (error) {
      return { read, ...said(error) };
    }
    return "never refused";
  },

  async administer() {
    const s2 = client();
    const basin = "interop-node-basin";
    const seen = {};
    seen.created = (await s2.basins.create({ basin, config: { createStreamOnAppend: true } })).name;
    seen.again = await attempt(() => s2.basins.create({ basin }));
    seen.ensured = [
      (await s2.basins.ensure({ basin })).result,
      (await s2.basins.ensure({ basin, config: { createStreamOnRead: true } })).result,
    ];
    seen.basins = (await s2.basins.list({ prefix: "interop-node" })).basins.map((b) => b.name);
    const config = await s2.basins.reconfigure({ basin, createStreamOnAppend: true });
    seen.config = [config.createStreamOnAppend, config.createStreamOnRead];
    const { streams } = s2.basin(basin);
    for (const name of ["a/1", "a/2", "b"]) await streams.create({ stream: name });
    seen.ensuredStream = [
      (await streams.ensure({ stream: "c" })).result,
      (await streams.ensure({ stream: "c" })).result,
    ];
    await streams.reconfigure({ stream: "b", retentionPolicy: { ageSecs: 3600 } });
    seen.retention = (await streams.getConfig({ stream: "b" })).retentionPolicy;
    await streams.delete({ stream: "a/1" });
    seen.streams = (await streams.list()).streams.map((one) => one.name);
    await s2.basins.delete({ basin });
    seen.basinsLeft = (await s2.basins.list({ prefix: "interop-node" })).basins.length;
    return seen;
  },
};

console.log(JSON.stringify(await scenarios[name]()));
process.exit(0); // pooled connections would keep the process alive
