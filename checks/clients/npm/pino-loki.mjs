// pino with its transport for Loki, in a thread as it is meant.
import { once } from "node:events";
import pino from "pino";
import { eachMessage, url } from "./messages.mjs";

const transport = pino.transport({
  target: "pino-loki",
  options: { host: url, labels: { app: "shop" }, batching: { interval: 0.2 } },
});
const logger = pino(transport);
await eachMessage((message) => logger.warn(message));
const keep = setInterval(() => {}, 1000); // the thread of a transport keeps no process alive
const closed = once(transport, "close");
transport.end();
await closed;
clearInterval(keep);
