// pipe.mjs RUN KEY: send the JSON array on standard input with one `streams.pipe`.
import { text } from "node:stream/consumers";
import { apiClientManager, realtimeStreams } from "@trigger.dev/core/v3";
import { StandardRealtimeStreamsManager } from "@trigger.dev/core/v3/workers";
import { streams } from "@trigger.dev/sdk";

// What the SDK's own worker installs before it runs a task.
realtimeStreams.setGlobalManager(
  new StandardRealtimeStreamsManager(apiClientManager.clientOrThrow(), process.env.TRIGGER_API_URL),
);

const [runId, key] = process.argv.slice(2);
const values = JSON.parse(await text(process.stdin));
await streams.pipe(key, ReadableStream.from(values), { target: runId }).waitUntilComplete();
// The SDK's stream client keeps its connection, and with it the process.
process.exit(0);
