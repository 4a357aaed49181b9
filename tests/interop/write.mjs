// write.mjs MODE COUNT RUN KEY: say `ready`, wait for a line on standard input, write COUNT chunks,
// and print as JSON when that began and ended and what CPU time it took. For benchmarks.
import { once } from "node:events";
import readline from "node:readline";
import { apiClientManager, realtimeStreams } from "@trigger.dev/core/v3";
import { StandardRealtimeStreamsManager } from "@trigger.dev/core/v3/workers";
import { streams } from "@trigger.dev/sdk";

// What the SDK's own worker installs before it runs a task.
realtimeStreams.setGlobalManager(
  new StandardRealtimeStreamsManager(apiClientManager.clientOrThrow(), process.env.TRIGGER_API_URL),
);

const [mode, count, target, key] = process.argv.slice(2);
const chunk = { type: "text-delta", id: "t", delta: "a word or two " };
const chunks = Array(Number(count)).fill(chunk);
const append = () => streams.append(key, chunk, { target });

const writes = {
  async awaited() {
    for (const _ of chunks) await append();
  },
  async at_once(note) {
    const sent = chunks.map(append);
    note();
    await Promise.all(sent);
  },
  async bulk() {
    await streams.pipe(key, ReadableStream.from(chunks), { target }).waitUntilComplete();
  },
};

const seconds = () => Number(process.hrtime.bigint()) / 1e9;
await append(); // mints, connects, compiles
console.log("ready");
await once(readline.createInterface({ input: process.stdin }), "line");

let enqueued = null;
const cpu = process.cpuUsage();
const began = seconds();
await writes[mode](() => (enqueued = seconds()));
const ended = seconds();
const { user, system } = process.cpuUsage(cpu);
console.log(JSON.stringify({ began, enqueued, ended, cpu: (user + system) / 1e6 }));
process.exit(0);
