// The panel beside the map: stations and emitters, one fix in detail, and the latest fixes as a table.

import { byId, copyText, element, setPressed, setText } from "./dom.js";
import {
  clock,
  coordinates,
  count,
  dateTime,
  duration,
  flagText,
  frequency,
  metres,
  percent,
  reasonText,
} from "./format.js";

/** Stations with their emitters. Calls `actions`: select(key), toggle(key, shown), toggleStation(name, shown), heat(name). */
export class Legend {
  #root = byId("stations");
  #actions;
  #stations = new Map();
  #emitters = new Map();

  constructor(actions) {
    this.#actions = actions;
  }

  /** Take over the list of `GET /stations`. */
  setStations(stations) {
    const names = new Set(stations.map(({ name }) => name));
    for (const [name, { root, list }] of this.#stations) {
      if (names.has(name) || list.childElementCount) continue;
      root.remove();
      this.#stations.delete(name);
    }
    for (const { name, state, receivers, area, likelihood } of stations) {
      const station = this.#station(name);
      setText(station.state, state === "unknown" ? "" : state);
      station.state.dataset.state = state;
      setText(station.receivers, receivers.length ? `Receivers: ${receivers.map((each) => each.name).join(", ")}` : "");
      station.shown.hidden = !receivers.length && !area;
      station.heat.hidden = !likelihood;
    }
  }

  addEmitter({ key, station, frequency_hz, colour, dash }) {
    const name = frequency(frequency_hz);
    const shown = element("input", { type: "checkbox", checked: true, "aria-label": `Show ${station}, ${name}` });
    shown.addEventListener("change", () => this.#actions.toggle(key, shown.checked));
    const swatch = element("span", { className: "swatch", "aria-hidden": "true" });
    swatch.style.borderColor = colour;
    swatch.style.borderStyle = dash.length ? (dash[0] > 2 ? "dashed" : "dotted") : "solid";
    const summary = element("span", { className: "summary" });
    const select = element(
      "button",
      { type: "button", className: "emitter" },
      element("b", { textContent: name }),
      summary,
    );
    select.addEventListener("click", () => this.#actions.select(key));
    const row = element("li", {}, shown, swatch, select);
    this.#station(station).list.append(row);
    this.#emitters.set(key, { row, select, summary });
  }

  removeEmitter(key) {
    this.#emitters.get(key)?.row.remove();
    this.#emitters.delete(key);
  }

  /** `emitters`: `{ key, record }` with the record null where nothing was heard. */
  update(emitters, selectedKey) {
    for (const { key, record } of emitters) {
      const { select, summary } = this.#emitters.get(key);
      setPressed(select, key === selectedKey);
      setText(summary, record ? summaryOf(record.fix) : "nothing heard");
    }
  }

  /** `message`: why there is no likelihood, or when the one shown is from. */
  updateHeat(stationName, message) {
    for (const [name, { heat, heatMessage }] of this.#stations) {
      setPressed(heat, name === stationName);
      setText(heatMessage, name === stationName ? message : "");
    }
  }

  #station(name) {
    if (!this.#stations.has(name)) {
      const state = element("span", { className: "state" });
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => this.#actions.toggleStation(name, box.checked));
      const shown = element("label", { className: "check", hidden: true }, box, "Receivers and area");
      const heat = element("button", {
        type: "button",
        className: "heat-button",
        hidden: true,
        textContent: "Likelihood",
      });
      heat.setAttribute("aria-label", `Likelihood of ${name}`);
      setPressed(heat, false);
      heat.addEventListener("click", () => this.#actions.heat(name));
      const heatMessage = element("p", { className: "hint", role: "status" });
      const receivers = element("p", { className: "hint" });
      const list = element("ul", { className: "emitters" });
      const title = element("h3", {}, element("span", { className: "name", textContent: name }), state);
      const root = element(
        "article",
        {},
        title,
        list,
        element("div", { className: "row" }, shown, heat),
        heatMessage,
        receivers,
      );
      this.#root.append(root);
      this.#stations.set(name, { root, state, shown, heat, heatMessage, receivers, list });
    }
    return this.#stations.get(name);
  }
}

function summaryOf({ status, reason, position, uncertainty }) {
  if (status !== "ok") return `no fix: ${reasonText(reason)}`;
  return `${coordinates(position)} ± ${metres(uncertainty.semi_major_m)}`;
}

const ROWS = [
  ["state", "State"],
  ["time", "Time"],
  ["age", "Age"],
  ["position", "Position"],
  ["ellipse", "Ellipse"],
  ["azimuth", "Major axis"],
  ["tracks", "Tracks"],
  ["confidence", "Confidence"],
  ["frequency", "Frequency"],
  ["model", "Model"],
  ["cache", "Cache"],
  ["latency", "Latency"],
  ["window", "Window"],
  ["dropped", "Dropped"],
  ["alignment", "Alignment"],
  ["sequence", "Stream"],
];

function trackText({ id, state, velocity, lag_s }) {
  const going = `${velocity.speed_mps.toFixed(1)} m/s towards ${Math.round(velocity.course_deg) % 360}°`;
  const behind = lag_s > 0 ? `, ${lag_s.toFixed(1)} s behind` : "";
  return `#${id} ${going}${behind}${state === "coasting" ? ", coasting" : ""}`;
}

/** One fix, field by field. */
export class Details {
  #root = byId("details");
  #title = byId("details-title");
  #values = new Map();
  #receivers = byId("levels");
  #copy = element("button", {
    type: "button",
    className: "small",
    textContent: "Copy",
    "aria-label": "Copy the position",
  });
  #position = null;

  constructor(announce) {
    const list = byId("details-list");
    for (const [key, name] of ROWS) {
      const value = element("span");
      this.#values.set(key, value);
      list.append(element("dt", { textContent: name }), element("dd", {}, value));
    }
    this.#values.get("position").after(this.#copy);
    this.#copy.addEventListener("click", async () => {
      const { latitude, longitude } = this.#position;
      const copied = await copyText(`${latitude.toFixed(6)}, ${longitude.toFixed(6)}`);
      announce(copied ? "position copied" : "the browser does not let the page copy");
    });
  }

  /** `dropped`: windows lost since the page was opened. `age`: seconds, or null for a fix of the past. */
  update(name, record, { local, age, dropped }) {
    this.#root.hidden = record === null;
    if (record === null) return;
    const { fix, time } = record;
    const { uncertainty, model, alignment } = fix;
    setText(this.#title, name);
    this.#position = fix.position;
    this.#copy.hidden = fix.position === null;
    const texts = {
      state: fix.status === "ok" ? "fix" : `no fix: ${reasonText(fix.reason)}`,
      time: `${dateTime(time, local)}${fix.time_source === "rx_time" ? "" : `, by ${TIME_SOURCES[fix.time_source]}`}`,
      age: age === null ? "shown as it was then" : duration(age),
      position: fix.position ? coordinates(fix.position) : "none",
      ellipse: uncertainty
        ? `${metres(uncertainty.semi_major_m)} × ${metres(uncertainty.semi_minor_m)}, holds ${percent(uncertainty.probability)}`
        : "none",
      azimuth: uncertainty ? `${uncertainty.azimuth_deg.toFixed(0)}° from true north` : "none",
      tracks: (fix.tracks ?? []).map(trackText).join("; ") || "none",
      confidence: percent(fix.confidence),
      frequency: frequency(fix.frequency_hz),
      model: `${model.name}${model.version && `, version ${model.version}`}${model.arm && ` (${model.arm})`}, ${model.backend}`,
      cache: fix.cache_hit ? "answer of an earlier, alike window" : "computed for this window",
      latency: `${fix.latency_ms.toFixed(1)} ms, of them inference ${fix.inference_time_ms.toFixed(1)} ms`,
      window: `${count(fix.window.samples)} samples, ${metricSeconds(fix.window.duration_s)}`,
      dropped: `${count(fix.dropped_windows)} windows before this fix, ${count(dropped)} since the page was opened`,
      alignment: alignment ? alignmentText(alignment) : "none",
      sequence: `${fix.stream}, fix ${count(fix.sequence)}`,
    };
    for (const [key, value] of this.#values) setText(value, texts[key]);
    this.#values.get("state").dataset.status = fix.status;
    this.#values.get("model").title = model.sha256 ? `SHA-256 ${model.sha256}` : "";
    this.#updateReceivers(fix.receivers);
  }

  #updateReceivers(receivers) {
    const rows = this.#receivers.rows;
    while (rows.length > receivers.length) this.#receivers.deleteRow(-1);
    while (rows.length < receivers.length) {
      this.#receivers.append(element("tr", {}, element("th", { scope: "row" }), element("td"), element("td")));
    }
    receivers.forEach(({ name, level_db, used, flags }, k) => {
      const [title, level, notes] = rows[k].cells;
      setText(title, name);
      setText(level, level_db === null ? "–" : `${level_db.toFixed(1)} dB`);
      setText(notes, [...(used ? [] : ["not used"]), ...flags.map(flagText)].join("; ") || "used");
      rows[k].dataset.used = used && !flags.length;
    });
  }
}

const TIME_SOURCES = { host: "the host's clock", none: "no clock of the stream" };

function metricSeconds(seconds) {
  if (seconds >= 1) return `${Number(seconds.toPrecision(3))} s`;
  return seconds >= 1e-3
    ? `${Number((1e3 * seconds).toPrecision(3))} ms`
    : `${Number((1e6 * seconds).toPrecision(3))} µs`;
}

function alignmentText({ residual_ns, gaps_filled, gaps_skipped }) {
  const residual = residual_ns === null ? "streams without time" : `within ${Number(residual_ns.toPrecision(3))} ns`;
  return `${residual}; gaps: ${count(gaps_filled)} filled, ${count(gaps_skipped)} skipped`;
}

/** The latest fix of every emitter: what the map shows, as text. */
export class FixTable {
  #body = byId("fixes");
  #rows = new Map();

  /** `emitters`: `{ key, label, record }`. */
  update(emitters, local) {
    for (const [key, row] of this.#rows) {
      if (emitters.some((emitter) => emitter.key === key && emitter.record)) continue;
      row.remove();
      this.#rows.delete(key);
    }
    for (const { key, label, record } of emitters) {
      if (!record) continue;
      if (!this.#rows.has(key)) {
        const cells = [1, 2, 3, 4].map(() => element("td"));
        const row = element("tr", {}, element("th", { scope: "row", textContent: label }), ...cells);
        this.#rows.set(key, row);
        this.#body.append(row);
      }
      const { fix, time } = record;
      const ellipse = fix.uncertainty;
      const texts = [
        clock(time, local).slice(0, 10),
        fix.position ? coordinates(fix.position) : `no fix: ${reasonText(fix.reason)}`,
        ellipse ? `${metres(ellipse.semi_major_m)} × ${metres(ellipse.semi_minor_m)}` : "–",
        percent(fix.confidence),
      ];
      texts.forEach((text, k) => setText(this.#rows.get(key).cells[k + 1], text));
    }
  }
}
