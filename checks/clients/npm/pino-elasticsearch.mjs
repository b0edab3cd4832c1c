// pino with its stream for Elasticsearch.
import pino from "pino";
import pinoElasticsearch from "pino-elasticsearch";
import { eachMessage, url } from "./messages.mjs";

const stream = pinoElasticsearch({ node: url, index: "logs", esVersion: 8, flushBytes: 10_000, flushInterval: 200 });
stream.on("error", (error) => console.error(error.message));
const logger = pino(stream);
await eachMessage((message) => logger.warn(message));
stream.end();
// The process ends by itself when the last batch is answered.
