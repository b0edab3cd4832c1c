// pino with pino-http-send, which repeats for as long as docs/protocols.md recommends.
import pino from "pino";
import { createWriteStream } from "pino-http-send";
import { eachMessage, url } from "./messages.mjs";

const stream = createWriteStream({
  url: `${url}/api/logs/lines`, batchSize: 50, timeout: 200, interval: 1000, retries: 100_000, silent: true,
});
const logger = pino(stream);
await eachMessage((message) => logger.warn(message));
// The process ends by itself when the last batch is answered.
