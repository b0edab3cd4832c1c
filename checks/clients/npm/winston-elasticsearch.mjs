// winston with its transport for Elasticsearch. The process ends by itself when the transport's buffer is empty.
import winston from "winston";
import { ElasticsearchTransport } from "winston-elasticsearch";
import { eachMessage, url } from "./messages.mjs";

const transport = new ElasticsearchTransport({
  clientOpts: { node: url }, ensureIndexTemplate: false, flushInterval: 200,
});
transport.on("warning", () => {});
const logger = winston.createLogger({ transports: [transport] });
await eachMessage((message) => logger.warn(message));
