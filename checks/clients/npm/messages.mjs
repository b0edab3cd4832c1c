// The messages of a run, at its pace, for a program that logs them.
import { setTimeout as sleep } from "node:timers/promises";

export const url = process.env.SLUICE_URL;
export const port = Number(process.env.SLUICE_PORT);
const run = process.env.RUN;
const count = Number(process.env.MESSAGES);
const perSecond = Number(process.env.PER_SECOND);

/** Call `log` with each message when it is due. */
export async function eachMessage(log) {
  const began = performance.now();
  for (let number = 0; number < count; number++) {
    const early = began + (number * 1000) / perSecond - performance.now();
    if (early > 20) await sleep(early);
    await log(`${run}-${String(number).padStart(6, "0")} order`);
  }
}
