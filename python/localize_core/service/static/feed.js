// The stream of fixes: server-sent events over fetch, which unlike EventSource tells HTTP errors, may resume
// anywhere, and shows heartbeats.

import { createParser } from "./vendor/eventsource-parser/eventsource-parser.js";

const HISTORY = 500;
const SILENCE_MS = 40_000; // the server lets its heart beat every 15 s
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 10_000;
const MAX_EVENT_CHARACTERS = 4_000_000;

/**
 * Calls `handlers` with what the server tells: `onFix(cursor, fix)`, `onStations(stations)`, `onSkipped(count)`,
 * `onRestart()`, and `onState({ phase, since, detail })` where phase is "connecting" (at first), "connected", "waiting"
 * (for the next try) or "refused" (a token is missing), and `since` the time, ms, since which there is no connection.
 */
export class Feed {
  #handlers;
  #cursor = null;
  #delay = FIRST_DELAY_MS;
  #lostAt = null;
  #wake = null;

  constructor(handlers) {
    this.#handlers = handlers;
    // A network that is back, or a page that is looked at again, is worth a try at once.
    window.addEventListener("online", () => this.#wake?.());
    document.addEventListener("visibilitychange", () => document.hidden || this.#wake?.());
  }

  /** Runs as long as the page does. */
  async run() {
    this.#tell("connecting", "");
    for (;;) {
      let phase = "waiting";
      let detail = "the connection was closed";
      try {
        phase = await this.#read();
      } catch (error) {
        detail = reasonOf(error);
      }
      this.#lostAt ??= Date.now();
      this.#tell(phase, detail);
      await this.#sleep(this.#delay * (0.75 + 0.5 * Math.random()));
      this.#delay = Math.min(2 * this.#delay, LONGEST_DELAY_MS);
    }
  }

  async #read() {
    const abort = new AbortController();
    let watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
    try {
      const headers = { Accept: "text/event-stream" };
      if (this.#cursor !== null) headers["Last-Event-ID"] = this.#cursor;
      const query = this.#cursor === null ? `?history=${HISTORY}` : "";
      const answer = await fetch(`fixes/stream${query}`, { headers, signal: abort.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) return "refused";
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      this.#lostAt = null;
      this.#delay = FIRST_DELAY_MS;
      this.#tell("connected", "");
      const parser = createParser({ onEvent: this.#dispatcher(), maxBufferSize: MAX_EVENT_CHARACTERS });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return "waiting";
        clearTimeout(watchdog);
        watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
        parser.feed(value);
      }
    } finally {
      clearTimeout(watchdog);
      abort.abort();
    }
  }

  /** A handler of the events of one connection. */
  #dispatcher() {
    let resuming = this.#cursor !== null;
    return ({ id, event, data }) => {
      if (event === "fix") {
        const cursor = Number(id);
        // Cursors rise by one; where they do not and nothing was skipped, they are of another run of the server.
        if (resuming && cursor !== Number(this.#cursor) + 1) this.#handlers.onRestart();
        resuming = false;
        this.#cursor = id;
        this.#handlers.onFix(cursor, JSON.parse(data));
      } else if (event === "stations") {
        this.#handlers.onStations(JSON.parse(data).stations);
      } else if (event === "skipped") {
        resuming = false;
        this.#handlers.onSkipped(JSON.parse(data).count);
      }
    };
  }

  #tell(phase, detail) {
    this.#handlers.onState({ phase, detail, since: this.#lostAt });
  }

  #sleep(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

function reasonOf(error) {
  if (error.name === "AbortError") return `nothing was heard for ${SILENCE_MS / 1000} s`;
  return error instanceof TypeError ? "the server cannot be reached" : error.message;
}
