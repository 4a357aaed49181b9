// read.mjs RUN KEY [OPTIONS]: print each chunk of the stream as one line of JSON.
// OPTIONS is JSON: what `streams.read` takes, and `limit`, after which the reader stops by itself.
import { streams } from "@trigger.dev/sdk";

const [runId, key, options = "{}"] = process.argv.slice(2);
const { limit = Infinity, ...rest } = JSON.parse(options);

let count = 0;
for await (const chunk of await streams.read(runId, key, rest)) {
  console.log(JSON.stringify(chunk));
  if (++count >= limit) break;
}
