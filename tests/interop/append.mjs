// append.mjs RUN KEY: send each string of the JSON array on standard input with `streams.append`.
import { text } from "node:stream/consumers";
import { apiClientManager, realtimeStreams } from "@trigger.dev/core/v3";
import { StandardRealtimeStreamsManager } from "@trigger.dev/core/v3/workers";
import { streams } from "@trigger.dev/sdk";

// Outside a task `streams.append` silently does nothing. This is what the SDK's own worker
// installs before it runs a task.
realtimeStreams.setGlobalManager(
  new StandardRealtimeStreamsManager(apiClientManager.clientOrThrow(), process.env.TRIGGER_API_URL),
);

const [runId, key] = process.argv.slice(2);
for (const part of JSON.parse(await text(process.stdin))) {
  await streams.append(key, part, { target: runId });
}
