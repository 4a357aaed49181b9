// What the official SDK does with payloads of more than 128 KiB: it uploads them before it triggers.
// Prints one JSON document of what it was told.
import { auth, batch, configure, runs, tasks } from "@trigger.dev/sdk";

configure({
  baseURL: process.env.TRIGGER_API_URL,
  accessToken: process.env.TRIGGER_SECRET_KEY,
});

const KB = 1000;
const MB = 1000 * KB;
const quick = { pollIntervalMs: 50 };
const requests = [];
const plain = globalThis.fetch;
globalThis.fetch = (url, init) => {
  requests.push(`${init?.method ?? "GET"} ${new URL(url).pathname.split("/").slice(0, 4).join("/")}`);
  return plain(url, init);
};

const refusal = async (call) => {
  const started = Date.now();
  try {
    await call();
    return null;
  } catch (error) {
    return {
      status: error.status ?? error.cause?.status,
      message: `${error.message} ${error.cause?.message ?? ""}`.trim(),
      tookLong: Date.now() - started > 5000,
    };
  }
};
const uploads = () => requests.filter((one) => one === "PUT /api/v1/uploads").length;
const outputOf = async (id) => (await runs.poll(id, quick)).output;

const said = {};
said.small = [await outputOf((await tasks.trigger("size", "x".repeat(100 * KB))).id), uploads()];
said.text = [await outputOf((await tasks.trigger("size", "x".repeat(300 * KB))).id), uploads()];
said.large = [await outputOf((await tasks.trigger("size", "ü".repeat(MB))).id), uploads()];

// Decoded as every payload is; and what is large comes back whole.
const rich = { when: new Date(0), set: new Set([1]), list: Array(40 * KB).fill("ten chars."), big: 2n ** 70n };
const run = await runs.poll(await tasks.trigger("echo", rich), quick);
said.rich = {
  when: run.output.when,
  set: run.output.set,
  listed: run.output.list.length,
  last: run.output.list.at(-1),
  same: JSON.stringify(run.payload) === JSON.stringify(run.output),
};
const back = await runs.poll(await tasks.trigger("echo", "y".repeat(2 * MB)), quick);
said.back = [back.payload.length, back.output === "y".repeat(2 * MB)];

// A batch: what is large goes ahead, and the rest with the batch.
const sizes = [10, 300 * KB, 2 * MB, 20, ...Array(6).fill(3 * MB)];
const before = uploads();
const many = await tasks.batchTrigger("size", sizes.map((size) => ({ payload: "z".repeat(size) })));
said.batch = [];
for (const id of (await batch.retrieve(many.batchId)).runs) said.batch.push(await outputOf(id));
said.batchUploads = uploads() - before;

// Too large for a run here, and too large for a request.
said.tooLarge = await refusal(() => tasks.trigger("size", "x".repeat(11 * MB)));
said.muchTooLarge = await refusal(() => tasks.trigger("size", "x".repeat(17 * MB)));
said.tooLargeInBatch = await refusal(() =>
  tasks.batchTrigger("size", [{ payload: "ok" }, { payload: "x".repeat(11 * MB) }]),
);

// A public token uploads nothing.
const once = await auth.createTriggerPublicToken("size");
said.byToken = await refusal(() =>
  auth.withAuth({ accessToken: once }, () => tasks.trigger("size", "x".repeat(300 * KB))),
);

process.stdout.write(JSON.stringify(said), () => process.exit(0));
