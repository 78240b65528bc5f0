// The fixes that the page keeps: the latest ones while live, a window of the past while paused.

const LIVE_FIXES = 5000;
const PAUSED_FIXES = 20000;
const PAGE_FIXES = 500;
export const MAX_EMITTERS = 60;

/** Fixes of one station on one frequency belong together. */
export const emitterKey = (fix) => `${fix.station}\u0000${fix.frequency_hz ?? ""}`;

/** A fix beside what the page needs to know of it. */
export function makeRecord(cursor, fix) {
  return { cursor, fix, key: emitterKey(fix), time: Date.parse(fix.timestamp) };
}

/** By track of a fix, where it is. */
function linesOf({ fix }) {
  return new Map((fix.tracks ?? []).map(({ id, position }) => [id, [position]]));
}

/** Add the places of an older fix's tracks; numbers of another stream are those of others. */
function prolong({ record, lines }, { fix }) {
  if (fix.stream !== record.fix.stream) return;
  for (const { id, position } of fix.tracks ?? []) lines.get(id)?.push(position);
}

/** The last `capacity` items, oldest first. */
class Ring {
  #items = [];
  #start = 0;
  #capacity;

  constructor(capacity) {
    this.#capacity = capacity;
  }

  get length() {
    return this.#items.length;
  }

  at(index) {
    return this.#items[(this.#start + index) % this.#items.length];
  }

  push(item) {
    if (this.#items.length < this.#capacity) {
      this.#items.push(item);
    } else {
      this.#items[this.#start] = item;
      this.#start = (this.#start + 1) % this.#capacity;
    }
  }

  toArray() {
    return [...this.#items.slice(this.#start), ...this.#items.slice(0, this.#start)];
  }
}

export class FixHistory {
  #live = new Ring(LIVE_FIXES);
  #latest = new Map(); // by emitter, the one heard longest ago first
  #paused = null;
  #index = 0;
  #loading = false;
  #complete = false;

  get paused() {
    return this.#paused !== null;
  }

  get loading() {
    return this.#loading;
  }

  get length() {
    return (this.#paused ?? this.#live).length;
  }

  /** Which fix is shown last: the newest one while live. */
  get index() {
    return this.paused ? this.#index : this.length - 1;
  }

  /** The fix shown last, or null before the first. */
  get current() {
    return this.length ? (this.#paused ? this.#paused[this.#index] : this.#live.at(this.length - 1)) : null;
  }

  /** Take a fix from the stream. Returns the key of the emitter that had to make room for a new one, or null. */
  add(record) {
    this.#live.push(record);
    this.#latest.delete(record.key);
    this.#latest.set(record.key, record);
    if (this.#latest.size <= MAX_EMITTERS) return null;
    const [oldest] = this.#latest.keys();
    this.#latest.delete(oldest);
    return oldest;
  }

  /** Hold what is shown, at the fix of this index. */
  pause(index) {
    if (!this.length) return;
    if (!this.#paused) {
      this.#paused = this.#live.toArray();
      this.#complete = false;
    }
    this.#index = Math.min(Math.max(index, 0), this.#paused.length - 1);
  }

  goLive() {
    this.#paused = null;
  }

  /** Whether fixes before the first one here may be with the server, and have room here. */
  get hasOlder() {
    return this.paused && !this.#complete && this.#paused.length + PAGE_FIXES <= PAUSED_FIXES;
  }

  /** Put one page of older fixes before those held. Returns how many. Errors are those of `fetch`. */
  async loadOlder() {
    if (!this.hasOlder || this.#loading) return 0;
    this.#loading = true;
    try {
      const before = this.#paused;
      const query = new URLSearchParams({ limit: PAGE_FIXES, before: before[0].cursor });
      const answer = await fetch(`fixes?${query}`);
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      const page = await answer.json();
      if (this.#paused !== before) return 0; // went live meanwhile
      const older = page.fixes.map(({ cursor, fix }) => makeRecord(cursor, fix)).reverse();
      this.#complete = page.older === null || older.length === 0;
      this.#paused = [...older, ...before];
      this.#index += older.length;
      return older.length;
    } finally {
      this.#loading = false;
    }
  }

  /**
   * What was known at the fix shown last: by emitter its latest fix as `record`, `trail`, the positions of up to
   * `trailFixes` fixes before it, newest first, and `lines`: by track of that fix, its places over those, likewise.
   */
  state(trailFixes) {
    const found = new Map();
    const fixes = this.#paused ?? this.#live;
    let unfinished = this.#latest.size;
    for (let index = this.index; index >= 0 && unfinished > 0; index--) {
      const record = fixes.at(index);
      if (!this.paused && !this.#latest.has(record.key)) continue; // had to make room
      let emitter = found.get(record.key);
      if (!emitter) {
        emitter = { record, trail: [], lines: linesOf(record) };
        found.set(record.key, emitter);
        if (trailFixes === 0) unfinished--;
      } else if (emitter.trail.length < trailFixes) {
        prolong(emitter, record);
        if (!record.fix.position) continue;
        emitter.trail.push(record.fix.position);
        if (emitter.trail.length === trailFixes) unfinished--;
      }
    }
    if (!this.paused) {
      for (const [key, record] of this.#latest) {
        if (!found.has(key)) found.set(key, { record, trail: [], lines: linesOf(record) });
      }
    }
    return found;
  }
}
