// routes.mjs TASK EXTERNAL_ID: call what the SDK calls of the control plane beyond run streams, and
// print what it gave as one JSON document.
import { apiClientManager } from "@trigger.dev/core/v3";
import { chat } from "@trigger.dev/sdk/ai";
import { auth, sessions, streams, wait } from "@trigger.dev/sdk";

const [taskIdentifier, externalId] = process.argv.slice(2);
const triggerConfig = { basePayload: { chatId: externalId }, tags: ["chat"] };
const api = apiClientManager.clientOrThrow();
const said = {};

async function refusal(call) {
  const startedAt = Date.now();
  try {
    await call();
  } catch (error) {
    return { status: error.status, tookLong: Date.now() - startedAt > 900 };
  }
}

const request = { type: "chat.agent", externalId, taskIdentifier, triggerConfig, tags: ["x"] };
said.started = await sessions.start({ ...request, expiresAt: new Date(Date.now() + 1e9) });
said.again = await sessions.start(request);
said.retrieved = await sessions.retrieve(said.started.id);
said.updated = await sessions.update(externalId, { metadata: { a: 1 } });
said.listed = [];
for await (const one of sessions.list({ limit: 1, tag: "x", status: "ACTIVE" })) {
  said.listed.push(one.id);
}

const session = sessions.open(externalId);
await session.in.send({ kind: "message", payload: { text: "hi" } });
await session.out.append({ n: 1 });
await session.out.append("two");
await session.out.writeControl("turn-complete", [["session-in-event-id", "0"]]);
said.read = [];
for await (const part of await session.out.read({ timeoutInSeconds: 1 })) said.read.push(part);
said.outRecords = (await api.readSessionStreamRecords(said.started.id, "out")).records;
said.inRecords = (await api.readSessionStreamRecords(externalId, "in")).records;

const side = await api.initializeSessionStream(externalId, "out", undefined, "side");
said.sideStream = side.headers["x-s2-stream-name"];
await api.appendToSessionStream(externalId, "out", "beside", undefined, "side");
said.sideRecords = (
  await api.readSessionStreamRecords(externalId, "out", { channel: "side" })
).records;

const runId = said.started.runId;
const waiting = { streamId: "answers", timeout: "1h" };
const sent = await api.createInputStreamWaitpoint(runId, waiting);
await streams.input({ id: "answers" }).send(runId, { yes: true });
said.sent = await wait.retrieveToken(sent.waitpointId);
const byHand = await api.createInputStreamWaitpoint(runId, { ...waiting, streamId: "by hand" });
await wait.completeToken(byHand.waitpointId, { x: 1 });
said.byHand = await wait.retrieveToken(byHand.waitpointId);
const spent = { session: externalId, io: "in", timeout: "0s", lastSeqNum: 0 };
const late = await api.createSessionStreamWaitpoint(runId, spent);
said.late = await wait.retrieveToken(late.waitpointId);

const startSession = chat.createStartSessionAction(taskIdentifier, {
  triggerConfig: { maxDuration: 60, region: "eu", tags: Array.from("abcdefghij") },
});
const pages = { chatId: "of a page", clientData: { user: 7 }, metadata: { plan: "pro" } };
said.pageToken = (await startSession(pages)).publicAccessToken;
said.page = await sessions.retrieve("of a page");
await startSession({ chatId: "without data" });
said.bare = await sessions.retrieve("without data");

said.token = await auth.createPublicToken({ scopes: { read: { sessions: externalId } } });
said.snapshot = await refusal(() => api.getChatSnapshotUrl(externalId));
said.closed = await sessions.close(externalId, { reason: "done" });
said.closedStart = await refusal(() => sessions.start(request));
said.closedSend = await refusal(() => session.in.send({ kind: "message" }));

// The SDK's stream client keeps its connection, and with it the process.
process.stdout.write(JSON.stringify(said), () => process.exit(0));
