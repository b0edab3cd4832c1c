// @elastic/elasticsearch as docs/protocols/elasticsearch.md recommends it: an _id for each document, and the program
// repeats a call that failed.
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Client } from "@elastic/elasticsearch";
import { eachMessage, url } from "./messages.mjs";

const BATCH = 100;
const client = new Client({ node: url });
let batch = [];

async function send(documents) {
  for (;;) {
    try {
      await client.helpers.bulk({
        datasource: documents,
        onDocument: ({ id }) => ({ index: { _index: "logs", _id: id } }),
      });
      return;
    } catch {
      await sleep(1000);
    }
  }
}

await eachMessage(async (message) => {
  batch.push({ id: randomUUID(), "@timestamp": new Date().toISOString(), log: { level: "warn" }, message });
  if (batch.length === BATCH) {
    await send(batch);
    batch = [];
  }
});
if (batch.length > 0) await send(batch);
await client.close();
