// The stream of events from /hub/events: read for as long as the page is seen, and read again when
// it breaks.

import { request, ServerError, serverEvents } from "./api.js";

const SILENCE_SECONDS = 10; // the server says something every second
const LONGEST_WAIT_SECONDS = 15;

/**
 * `handlers`: one function by event name; `began()` before the first event of a connection;
 * `lost(message, seconds)` when there is none, with the time until the next try (null: a key is
 * needed first). Returns a function that makes the next try begin now.
 */
export function watch(handlers) {
  let wake = () => {};
  let broken = 0;
  let controller = null;

  async function read() {
    controller = new AbortController();
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => controller.abort(), SILENCE_SECONDS * 1000);
    };
    try {
      heard();
      const response = await request("hub/events", { signal: controller.signal });
      handlers.began();
      for await (const { event, data } of serverEvents(response, heard)) {
        broken = 0;
        try {
          handlers[event]?.(JSON.parse(data));
        } catch (error) {
          reportError(error); // a fault of this page; the connection is good
        }
      }
    } finally {
      clearTimeout(timer);
    }
  }

  const until = (seconds) =>
    new Promise((resolve) => {
      const timer = seconds === null ? 0 : setTimeout(resolve, seconds * 1000);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });

  async function run() {
    for (;;) {
      while (document.hidden) await until(null); // in the background it costs the server nothing
      let message = "Connection lost.";
      let wait = Math.min(2 ** broken, LONGEST_WAIT_SECONDS);
      try {
        await read();
      } catch (error) {
        if (error instanceof ServerError) message = error.message;
        if (error.status === 401) wait = null;
      }
      if (document.hidden) continue;
      handlers.lost(message, wait);
      broken += 1;
      await until(wait);
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) controller?.abort();
    else wake();
  });
  window.addEventListener("online", () => wake());
  run();
  return () => wake();
}
