// Numbers, times and words as people read them.

/** Why there is no position, in a fix's `reason`. */
export const REASONS = {
  no_emitter: "no emitter recognised",
  too_few_receivers: "too few usable receivers",
  invalid_samples: "invalid samples in receivers that are needed",
  silence: "every receiver delivers zeros",
  model_error: "the model failed",
  model_unavailable: "the inference server did not answer",
  invalid_request: "the request does not fit the model",
  overloaded: "too many requests were waiting",
};

/** What was wrong with a receiver, in its `flags`. */
export const FLAGS = {
  invalid: "invalid samples, left out",
  silent: "only zeros, left out",
  saturated: "saturated, the level is a lower bound",
  unaligned: "no usable time stamps",
  gap: "missing samples filled with zeros",
  absent: "no samples came",
};

export const reasonText = (reason) => REASONS[reason] ?? reason ?? "";
export const flagText = (flag) => FLAGS[flag] ?? flag;

const COUNT = new Intl.NumberFormat("en", { useGrouping: true });
export const count = (n) => COUNT.format(n).replaceAll(",", "\u202f");

/** Decimal degrees to a metre, as in "45.12300, 7.45600". */
export const coordinates = ({ latitude, longitude }) => `${latitude.toFixed(5)}, ${longitude.toFixed(5)}`;

/** The same in words, for a screen reader. */
export function spokenCoordinates({ latitude, longitude }) {
  const northing = `${Math.abs(latitude).toFixed(4)} degrees ${latitude < 0 ? "south" : "north"}`;
  return `${northing}, ${Math.abs(longitude).toFixed(4)} degrees ${longitude < 0 ? "west" : "east"}`;
}

/** A length in metres or kilometres with three digits that count. */
export function metres(length) {
  if (length < 1000) return `${length.toFixed(length < 100 ? 1 : 0)} m`;
  const km = length / 1000;
  return `${km.toFixed(km < 10 ? 2 : km < 100 ? 1 : 0)} km`;
}

export function frequency(hz) {
  if (hz === null || hz === undefined) return "no frequency";
  const [scale, unit] = hz >= 1e9 ? [1e9, "GHz"] : hz >= 1e6 ? [1e6, "MHz"] : hz >= 1e3 ? [1e3, "kHz"] : [1, "Hz"];
  return `${Number((hz / scale).toFixed(6))} ${unit}`;
}

export const percent = (part) => `${Number((100 * part).toFixed(1))} %`;

export function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0).toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const two = (n) => String(n).padStart(2, "0");
const ZONE = new Intl.DateTimeFormat("en", { timeZoneName: "short" });

function zone(date) {
  return ZONE.formatToParts(date).find((part) => part.type === "timeZoneName").value;
}

/** Time of day to the millisecond. `ms`: since 1970. `local`: in the browser's zone, else UTC. */
export function clock(ms, local) {
  const date = new Date(ms);
  if (!local) return date.toISOString().slice(11, 23);
  const second = two(date.getSeconds());
  return `${two(date.getHours())}:${two(date.getMinutes())}:${second}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** Date, time of day and zone. */
export function dateTime(ms, local) {
  const date = new Date(ms);
  if (!local) return `${date.toISOString().slice(0, 10)} ${clock(ms, false)} UTC`;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(ms, true)} ${zone(date)}`;
}
