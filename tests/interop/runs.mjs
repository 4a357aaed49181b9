// What the official SDK does with runs: trigger, wait, read, cancel, list, replay, batch, metadata.
// Prints one JSON document of what it was told.
import { apiClientManager } from "@trigger.dev/core/v3";
import { auth, batch, configure, idempotencyKeys, runs, tasks } from "@trigger.dev/sdk";

configure({
  baseURL: process.env.TRIGGER_API_URL,
  accessToken: process.env.TRIGGER_SECRET_KEY,
});

const said = {};
const quick = { pollIntervalMs: 50 };

const refusal = async (call) => {
  const started = Date.now();
  try {
    await call();
    return null;
  } catch (error) {
    return {
      name: error.name,
      status: error.status,
      message: error.message,
      tookLong: Date.now() - started > 5000,
    };
  }
};

const brief = (run) => ({
  id: run.id,
  status: run.status,
  task: run.taskIdentifier,
  tags: run.tags,
  output: run.output,
  payload: run.payload,
  metadata: run.metadata,
  attemptCount: run.attemptCount,
  isSuccess: run.isSuccess,
  isFailed: run.isFailed,
  isCancelled: run.isCancelled,
  error: run.error && { name: run.error.name, message: run.error.message },
  createdAt: run.createdAt instanceof Date,
  finishedAt: run.finishedAt instanceof Date,
  children: run.relatedRuns?.children?.map((one) => [one.taskIdentifier, one.depth]),
});

// A Python task, its output, and every option.
const handle = await tasks.trigger(
  "echo",
  { when: new Date(0), big: 12345678901234567890n, set: new Set([1, 2]), text: "ü", none: undefined },
  {
    tags: ["user_1", "kind_a"],
    metadata: { step: 1 },
    maxAttempts: 2,
    maxDuration: 60,
    priority: 5,
    ttl: "10m",
    concurrencyKey: "tenant",
    queue: "task/echo",
  },
);
said.handle = { id: handle.id, hasToken: typeof handle.publicAccessToken === "string" };
said.echoed = brief(await runs.poll(handle, quick));

for (const [name, payload] of [["text", "plain"], ["number", 7], ["nothing", undefined]]) {
  said[name] = (await runs.poll(await tasks.trigger("echo", payload), quick)).output;
}
said.failed = brief(await runs.poll(await tasks.trigger("fail", {}), quick));
said.parent = brief(await runs.poll(await tasks.trigger("parent", 3), quick));

// The same key is the same run.
const key = await idempotencyKeys.create("once", { scope: "global" });
const first = await tasks.trigger("echo", 1, { idempotencyKey: key, idempotencyKeyTTL: "1h" });
const second = await tasks.trigger("echo", 2, { idempotencyKey: key });
said.once = [first.id === second.id, first.isCached, second.isCached];

// Cancel one that executes, and one that is delayed.
const busy = await tasks.trigger("hang", {});
while (!(await runs.retrieve(busy.id)).isExecuting);
said.cancelAnswer = (await runs.cancel(busy.id)).id === busy.id;
said.cancelled = brief(await runs.poll(busy, quick));
const later = await tasks.trigger("echo", {}, { delay: "1h", tags: "later" });
const delayed = await runs.retrieve(later.id);
said.delayed = [delayed.status, delayed.delayedUntil > new Date(Date.now() + 3_500_000)];
await runs.cancel(later.id);
said.delayedCancelled = (await runs.retrieve(later.id)).status;

// Move a delayed run, and tag a run while it waits. `tags.add` is this call with the run's own id.
const moved = await tasks.trigger("echo", "moved", { delay: "1h", ttl: "5m", tags: "moved" });
const rescheduled = await runs.reschedule(moved.id, { delay: "2h" });
said.rescheduled = [
  rescheduled.status,
  rescheduled.delayedUntil > new Date(Date.now() + 7_000_000),
  rescheduled.ttl,
];
const client = apiClientManager.clientOrThrow();
said.tagged = [
  (await client.addTags(moved.id, { tags: ["added", "moved", "added", " "] })).message,
  (await client.addTags(moved.id, { tags: "added" })).message,
  (await runs.retrieve(moved.id)).tags,
];
said.foundByTag = (await runs.list({ tag: "added" })).data.map((run) => run.id === moved.id);
said.tooManyTags = await refusal(() => client.addTags(moved.id, { tags: [..."abcdefghij"] }));
await runs.reschedule(moved.id, { delay: new Date() });
said.movedToNow = (await runs.poll(moved, quick)).output;
said.taggedWhenDone = (await client.addTags(moved.id, { tags: "done" })).message;
said.rescheduledWhenDone = await refusal(() => runs.reschedule(moved.id, { delay: "1h" }));

// Replay, as it was and with another payload.
const again = await runs.replay(handle.id);
said.replayed = brief(await runs.poll(again.id, quick));
said.replayedOther = (await runs.poll((await runs.replay(handle.id, { payload: [9] })).id, quick)).output;

// A batch.
const many = await tasks.batchTrigger(
  "echo",
  [10, 11, 12].map((payload) => ({ payload, options: { tags: ["batched"] } })),
);
const retrieved = await batch.retrieve(many.batchId);
said.batch = { runCount: many.runCount, runs: retrieved.runs.length };
said.batchOutputs = [];
for (const id of retrieved.runs) said.batchOutputs.push((await runs.poll(id, quick)).output);
said.batchStatus = (await batch.retrieve(many.batchId)).status;
const mixed = await batch.trigger([
  { id: "echo", payload: "one" },
  { id: "fail", payload: "two" },
]);
said.mixed = mixed.runCount;

// Lists: by tag over pages, by status and task.
const listed = [];
for await (const run of runs.list({ tag: "batched", limit: 2 })) listed.push(run.id);
said.listed = [listed.length, [...listed].reverse().every((id, n) => id === retrieved.runs[n])];
const page = await runs.list({ tag: ["user_1", "later"], limit: 10 });
said.listedTags = page.data.map((run) => run.tags[0]).sort();
said.cancelledListed = (await runs.list({ status: "CANCELED", taskIdentifier: "hang" })).data.map(
  (run) => run.id === busy.id,
);

// Public tokens: one that reads a run, one that triggers a task once.
const asHolder = (accessToken, call) => auth.withAuth({ accessToken }, call);
said.readWithToken = (await asHolder(handle.publicAccessToken, () => runs.retrieve(handle.id))).status;
said.readOther = await refusal(() =>
  asHolder(handle.publicAccessToken, () => runs.retrieve(first.id)),
);
const tagToken = await auth.createPublicToken({ scopes: { read: { tags: ["batched"] } } });
const runToken = await auth.createPublicToken({ scopes: { write: { runs: moved.id } } });
said.tagByToken = await refusal(() =>
  asHolder(runToken, () => apiClientManager.clientOrThrow().addTags(moved.id, { tags: "x" })),
);
said.tagToken = (
  await asHolder(tagToken, () => runs.list({ tag: "batched", limit: 10 }))
).data.length;
const once = await auth.createTriggerPublicToken("echo");
const byToken = await asHolder(once, () => tasks.trigger("echo", "by token"));
said.byToken = (
  await asHolder(byToken.publicAccessToken, () => runs.poll(byToken.id, quick))
).output;
said.tokenTwice = await refusal(() => asHolder(once, () => tasks.trigger("echo", "again")));
said.tokenOther = await refusal(() => asHolder(once, () => tasks.trigger("fail", "other")));

// Refusals come at once.
said.unknownTask = await refusal(() => tasks.trigger("ecko", {}));
said.unknownRun = await refusal(() => runs.retrieve("run_unknown"));
said.unknownCancel = await refusal(() => runs.cancel("run_unknown"));
said.badReschedule = await refusal(() => runs.reschedule(later.id, { delay: "soon" }));
said.badDelay = await refusal(() => tasks.trigger("echo", {}, { delay: "soon" }));

process.stdout.write(JSON.stringify(said), () => process.exit(0));
