// write.mjs MODE COUNT SESSION: say `ready`, wait for a line on standard input, write COUNT chunks to
// the session's `out`, and print as JSON when that began and ended and what CPU time it took.
// For benchmarks/streams_write.py.
import { once } from "node:events";
import readline from "node:readline";
import { sessions } from "@trigger.dev/sdk";

const [mode, count, id] = process.argv.slice(2);
const { out } = sessions.open(id);
const chunk = { type: "text-delta", id: "t", delta: "a word or two " };
const chunks = Array(Number(count)).fill(chunk);

const writes = {
  async awaited() {
    for (const each of chunks) await out.append(each);
  },
  async at_once(note) {
    const sent = chunks.map((each) => out.append(each));
    note();
    await Promise.all(sent);
  },
  async bulk() {
    await out.pipe(ReadableStream.from(chunks)).waitUntilComplete();
  },
};

const seconds = () => Number(process.hrtime.bigint()) / 1e9;
await out.append(chunk); // mints, connects, compiles
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
