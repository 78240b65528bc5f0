// Live, or somewhere in the past: the slider below the map.

import { byId, setText } from "./dom.js";
import { count, dateTime } from "./format.js";

/** Moves through `history`. Calls `changed()` when it has, `failed(message)` when older fixes cannot be loaded. */
export class Timeline {
  #history;
  #changed;
  #failed;
  #slider = byId("time-slider");
  #label = byId("time-label");
  #live = byId("time-live");
  #back = byId("time-back");
  #on = byId("time-on");

  constructor(history, changed, failed) {
    this.#history = history;
    this.#changed = changed;
    this.#failed = failed;
    this.#slider.addEventListener("input", () => this.#goTo(this.#slider.valueAsNumber));
    this.#slider.addEventListener("keydown", (event) => {
      // At its end the slider itself would not move, but there may be more.
      if (["ArrowLeft", "ArrowDown", "PageDown", "Home"].includes(event.key) && this.#history.index === 0)
        this.#goTo(0);
    });
    this.#back.addEventListener("click", () => this.#goTo(this.#history.index - 1));
    this.#on.addEventListener("click", () => this.#goTo(this.#history.index + 1));
    this.#live.addEventListener("click", () => {
      if (history.paused) history.goLive();
      else history.pause(history.index);
      this.#changed();
    });
  }

  update(local) {
    const history = this.#history;
    const { current, paused, index, length } = history;
    this.#slider.max = Math.max(length - 1, 0);
    this.#slider.value = Math.max(index, 0);
    for (const control of [this.#slider, this.#back, this.#on, this.#live]) control.disabled = length === 0;
    this.#back.disabled = length === 0 || (index === 0 && !(paused ? history.hasOlder : false));
    this.#on.disabled = !paused || index === length - 1;
    setText(this.#live, paused ? "Go live" : "Pause");
    this.#live.dataset.paused = paused;
    if (!current) return;
    const where = paused ? `fix ${count(index + 1)} of ${count(length)}` : "live";
    const time = dateTime(current.time, local);
    setText(this.#label, history.loading ? "loading older fixes …" : `${time} · ${where}`);
    this.#slider.setAttribute("aria-valuetext", `${time}, ${where}`);
  }

  #goTo(index) {
    this.#history.pause(index);
    this.#changed();
    if (this.#history.index === 0 && this.#history.hasOlder) {
      this.#history
        .loadOlder()
        .catch((error) => this.#failed(`older fixes: ${error.message}`))
        .finally(this.#changed);
      this.#changed();
    }
  }
}
