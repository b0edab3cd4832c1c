// winston with its transport for Loki, in protobuf and snappy: its default where the package snappy can be loaded.
import winston from "winston";
import LokiTransport from "winston-loki";
import { eachMessage, url } from "./messages.mjs";

let isRefused = false;
const transport = new LokiTransport({
  host: url, labels: { app: "shop" }, interval: 0.2, timeout: 10000,
  onConnectionError: () => { isRefused = true; },
});
const logger = winston.createLogger({ transports: [transport] });
await eachMessage((message) => logger.warn(message));
do {
  isRefused = false;
  await transport.flush(); // it also returns after a batch was refused and put back
} while (isRefused);
await transport.close();
