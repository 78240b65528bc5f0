// A colour for every emitter: the same whenever the page is opened, and told apart by colour-blind eyes.

// After Okabe and Ito (2008), pink and amber darkened: 3:1 or better against both grounds.
export const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc6699", "#a67c00"];

/** Line styles for those who share a colour. */
export const DASHES = [[], [8, 5], [2, 4]];

function hash(text) {
  let value = 2166136261; // FNV-1a
  for (let k = 0; k < text.length; k++) value = Math.imul(value ^ text.charCodeAt(k), 16777619);
  return value >>> 0;
}

/** Gives out styles `{ colour, dash }` by key: that of the key's hash, or the next one that is free. */
export class Palette {
  #slots = new Map();

  style(key) {
    if (!this.#slots.has(key)) this.#slots.set(key, this.#freeSlot(hash(key)));
    const slot = this.#slots.get(key);
    return { colour: COLOURS[slot % COLOURS.length], dash: DASHES[Math.floor(slot / COLOURS.length)] };
  }

  release(key) {
    this.#slots.delete(key);
  }

  /** Every colour with a full line first, then with the other lines; when all are given out, again the first. */
  #freeSlot(start) {
    const taken = new Set(this.#slots.values());
    for (let line = 0; line < DASHES.length; line++) {
      for (let k = 0; k < COLOURS.length; k++) {
        const slot = line * COLOURS.length + ((start + k) % COLOURS.length);
        if (!taken.has(slot)) return slot;
      }
    }
    return start % COLOURS.length;
  }
}
