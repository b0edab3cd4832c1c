// Logtail (Better Stack) for Node, which repeats for as long as docs/protocols.md recommends.
import { Logtail } from "@logtail/node";
import { eachMessage, url } from "./messages.mjs";

const logtail = new Logtail("any", {
  endpoint: `${url}/api/logs/lines`, batchSize: 100, batchInterval: 200, retryCount: 100_000,
});
await eachMessage((message) => { logtail.warn(message); }); // its promise is that of the answer
await logtail.flush();
// The process ends by itself when the last batch is answered.
