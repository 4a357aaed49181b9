// session.mjs ID [CHANNEL]: do to a session what each line of JSON on standard input says, and print
// what came of it as one line of JSON.
import readline from "node:readline";
import { apiClientManager, sessionStreams } from "@trigger.dev/core/v3";
import { StandardSessionStreamManager } from "@trigger.dev/core/v3/workers";
import { sessions } from "@trigger.dev/sdk";

// What the SDK's own worker installs before it runs a task: it reads `in`.
sessionStreams.setGlobalManager(
  new StandardSessionStreamManager(
    apiClientManager.clientOrThrow(),
    process.env.TRIGGER_API_URL,
  ),
);

const [id, name] = process.argv.slice(2);
const session = sessions.open(id);
const { in: input, out } = name ? session.channel(name) : session;

const does = {
  async append({ values }) {
    for (const value of values) await out.append(value);
  },
  async pipe({ values }) {
    await out.pipe(ReadableStream.from(values)).waitUntilComplete();
  },
  async control({ subtype, headers }) {
    return out.writeControl(subtype, headers);
  },
  async trim({ to }) {
    await out.trimTo(to);
  },
  async send({ values }) {
    for (const value of values) await input.send(value);
  },
  async receive({ count }) {
    const received = [];
    while (received.length < count) received.push((await input.once({ timeoutMs: 20000 })).output);
    return received;
  },
  async read({ limit = Infinity, lastEventId, timeoutInSeconds = 30 }) {
    const chunks = [];
    const controls = [];
    const ids = [];
    const given = new AbortController();
    const stream = await out.read({
      lastEventId,
      timeoutInSeconds,
      signal: given.signal,
      onPart: (part) => ids.push(part.id),
      onControl: ({ subtype, headers, seqNum }) => controls.push({ subtype, headers, seqNum }),
    });
    if (limit > 0) {
      for await (const chunk of stream) if (chunks.push(chunk) >= limit) break;
    }
    given.abort();
    return { chunks, controls, ids };
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const instruction = JSON.parse(line);
  const answer = await does[instruction.do](instruction);
  process.stdout.write(`${JSON.stringify(answer ?? null)}\n`);
}
// The SDK's stream clients keep their connections, and with them the process.
process.stdout.write("", () => process.exit(0));
