// chat.mjs TASK CHAT_ID: hold a conversation as a web page does, with the SDK's chat transport.
// Reads one instruction per line from stdin: {"ask": text} or {"ask": text, "stopAfter": deltas};
// prints one line of JSON per turn: its chunks, and the message that the AI SDK makes of them.
import readline from "node:readline";
import { readUIMessageStream } from "ai";
import { chat } from "@trigger.dev/sdk/ai";
import { TriggerChatTransport } from "@trigger.dev/sdk/chat";

const [task, chatId] = process.argv.slice(2);
const { TRIGGER_API_URL: baseURL } = process.env;

// What a page's own server does: it alone has the secret key.
const startSession = chat.createStartSessionAction(task);

const events = [];
const transport = new TriggerChatTransport({
  task,
  baseURL,
  startSession,
  accessToken: async () => (await startSession({ chatId })).publicAccessToken,
  onEvent: (event) => events.push(event.type),
});

const messages = [];
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { ask, stopAfter = Infinity } = JSON.parse(line);
  messages.push({ id: `u${messages.length}`, role: "user", parts: [{ type: "text", text: ask }] });
  const stream = await transport.sendMessages({
    trigger: "submit-message",
    chatId,
    messages,
    abortSignal: undefined,
  });
  const chunks = [];
  let deltas = 0;
  for await (const chunk of stream) {
    chunks.push(chunk);
    if (chunk.type === "text-delta" && ++deltas === stopAfter) {
      if (!(await transport.stopGeneration(chatId))) throw new Error("the stop was not sent");
    }
  }
  let message;
  for await (message of readUIMessageStream({ stream: ReadableStream.from(chunks) }));
  const token = transport.getSession(chatId)?.publicAccessToken;
  console.log(JSON.stringify({ chunks, message, token }));
}
console.log(JSON.stringify({ events }));
