// winston's own Http transport, in batches.
import winston from "winston";
import { eachMessage, port } from "./messages.mjs";

const transport = new winston.transports.Http({
  host: "127.0.0.1", port, path: "/api/logs/lines", batch: true, batchCount: 50, batchInterval: 200,
});
transport.on("warn", () => {}); // every status but 200
const logger = winston.createLogger({ format: winston.format.timestamp(), transports: [transport] });
await eachMessage((message) => logger.warn(message));
// It has no end of its own: the process ends when the last batch is answered.
