// The live map: what comes from the server goes into a history; what the history says at the chosen time is drawn, at
// most once a frame, and told in words, a few times a second.

import { byId, copyText, element, setPressed, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { clock, coordinates, count, frequency, metres, percent, reasonText, spokenCoordinates } from "./format.js";
import { ellipseRing, nearestLongitude, placeAhead } from "./geodesy.js";
import { Graticule } from "./graticule.js";
import { HeatMap } from "./heatmap.js";
import { FixHistory, MAX_EMITTERS, emitterKey, makeRecord } from "./history.js";
import { Palette } from "./palette.js";
import { Details, FixTable, Legend } from "./panel.js";
import { Scene } from "./scene.js";
import { remember, remembered, startTheme, theme } from "./theme.js";
import { Timeline } from "./timeline.js";

const TEXT_MS = 250;
const ANNOUNCE_MS = 10_000;
const RATE_SLOTS = 20; // of TEXT_MS each
const SETTLING_MS = 1000; // fixes of the past come first
const MAX_ZOOM = 20;
const AHEAD_S = 5; // that a track's arrow reaches

const history = new FixHistory();
const palette = new Palette();
const emitters = new Map(); // key: { key, label, station, frequency_hz, colour, dash, shown, dropped, record, ring }
const stations = new Map(); // name: as in GET /stations
const hiddenStations = new Set();
let connection = { phase: "connecting", detail: "", since: null };
let selected = null;
let following = false;
let local = remembered("zone", "utc") === "local";
let trailFixes = Number(remembered("trail", "200"));
let connectedAt = 0;
let skipped = 0;

// --- the map ---

const map = L.map("map", {
  attributionControl: false,
  fadeAnimation: false,
  inertia: !window.matchMedia("(prefers-reduced-motion: reduce)").matches,
  maxZoom: MAX_ZOOM,
  minZoom: 1,
  worldCopyJump: true,
  zoomAnimation: false, // canvases are painted anew for each zoom
  zoomControl: false,
  zoomSnap: 0.25,
});
L.control.zoom({ position: "topleft" }).addTo(map);
L.control.scale({ position: "bottomleft", imperial: false, maxWidth: 140 }).addTo(map);
const attribution = L.control.attribution({ prefix: "Leaflet" }).addTo(map);

for (const [name, zIndex] of [
  ["graticule", 250],
  ["heat", 300],
  ["fixes", 450],
]) {
  map.createPane(name).style.zIndex = zIndex;
}
const scene = new Scene({ pane: "fixes" });
const graticule = new Graticule({ pane: "graticule" });
let fitWanted = !showHash();
if (fitWanted) map.setView([30, 0], 2);
scene.addTo(map);

async function showBackground() {
  const settings = await fetch("map/settings")
    .then((answer) => (answer.ok ? answer.json() : {}))
    .catch(() => ({}));
  if (!settings.tiles) {
    graticule.addTo(map);
    return;
  }
  map.options.zoomSnap = 1; // between their zoom levels tiles would be blurred
  L.tileLayer(settings.tiles, { maxNativeZoom: 19, maxZoom: MAX_ZOOM }).addTo(map);
  if (settings.attribution) attribution.addAttribution(linksOnly(settings.attribution));
}

/** HTML in which links work and all else is text, for Leaflet takes no elements here. */
function linksOnly(html) {
  const clean = document.createElement("div");
  const parts = html.replaceAll("&copy;", "©").split(/<a\s[^>]*?href="(https?:[^"]*)"[^>]*>([^<]*)<\/a>/i);
  for (let k = 0; k < parts.length; k += 3) {
    // text, address, what the link says, text, …
    clean.append(parts[k]);
    if (k + 2 < parts.length) clean.append(element("a", { href: parts[k + 1], textContent: parts[k + 2] }));
  }
  return clean.innerHTML;
}

/** Show the place that the address ends with, as in #map=12/45.1230/7.4560. Returns whether there was one. */
function showHash() {
  const found = /^#map=(\d+(?:\.\d+)?)\/(-?\d+(?:\.\d+)?)\/(-?\d+(?:\.\d+)?)$/.exec(location.hash);
  if (!found) return false;
  const [zoom, latitude, longitude] = found.slice(1).map(Number);
  if (zoom > MAX_ZOOM || Math.abs(latitude) > 90) return false;
  map.setView([latitude, longitude], zoom);
  return true;
}

let hashTimer = null;
map.on("moveend", () => {
  if (fitWanted) return; // nothing that anybody has chosen
  clearTimeout(hashTimer);
  hashTimer = setTimeout(() => window.history.replaceState(null, "", viewHash()), 500);
});
window.addEventListener("hashchange", showHash);

function viewHash() {
  const { lat, lng } = map.getCenter().wrap();
  return `#map=${Number(map.getZoom().toFixed(2))}/${lat.toFixed(5)}/${lng.toFixed(5)}`;
}

/** Show all receivers and fixes; areas where there is neither. Returns whether there was something to show. */
function fit() {
  const bounds = L.latLngBounds([]);
  const add = (latitude, longitude) =>
    bounds.extend([latitude, bounds.isValid() ? nearestLongitude(longitude, bounds.getCenter().lng) : longitude]);
  for (const { receivers } of shownStations()) for (const each of receivers) add(each.latitude, each.longitude);
  for (const { ring } of drawnEmitters()) for (const [latitude, longitude] of ring ?? []) add(latitude, longitude);
  if (!bounds.isValid()) {
    for (const { area } of shownStations()) {
      if (area)
        bounds.extend([
          [area.south, area.west],
          [area.north, area.east],
        ]);
    }
  }
  if (bounds.isValid()) map.fitBounds(bounds, { animate: false, maxZoom: 16, padding: [40, 40] });
  return bounds.isValid();
}

// --- what the server tells ---

/** The emitter of a fix, made where it is new. */
function emitterOf({ key, fix }) {
  if (!emitters.has(key)) {
    const { station, frequency_hz } = fix;
    const label = `${station} ${frequency(frequency_hz)}`;
    const emitter = { key, label, station, frequency_hz, ...palette.style(key), shown: true, dropped: 0 };
    emitters.set(key, { ...emitter, record: null, trail: [], ring: null, tracks: [], lines: new Map() });
    legend.addEmitter(emitter);
    selected ??= key;
  }
  return emitters.get(key);
}

function forget(key) {
  emitters.delete(key);
  palette.release(key);
  legend.removeEmitter(key);
  if (selected === key) selected = emitters.keys().next().value ?? null;
}

let arrived = 0;

function onFix(cursor, fix) {
  const record = makeRecord(cursor, fix);
  const gone = history.add(record);
  if (gone !== null) forget(gone);
  emitterOf(record).dropped += fix.dropped_windows;
  arrived += 1;
  requestDraw();
}

function onStations(list) {
  stations.clear();
  for (const station of list) {
    stations.set(station.name, station);
    colourOf(station); // before the fixes, whose order changes
  }
  legend.setStations(list);
  if (heat.station !== null && !stations.get(heat.station)?.likelihood) heat.show(null);
  if (fitWanted) fit();
  requestDraw();
}

function onState(state) {
  const before = connection.phase;
  connection = state;
  connectedAt = Date.now();
  const down = (phase) => phase !== "connected";
  if (down(before) !== down(state.phase)) announce(connectionText());
  updateText();
  requestDraw();
}

function connectionText() {
  const { phase, detail, since } = connection;
  if (phase === "connected") return "Connected";
  if (phase === "connecting") return "Connecting";
  if (phase === "refused") return "The server wants a token: open the page as /?token=…";
  return `No connection since ${clock(since, local).slice(0, 8)}, trying again${detail && `: ${detail}`}`;
}

// --- drawing ---

const shownStations = () => [...stations.values()].filter(({ name }) => !hiddenStations.has(name));
const drawnEmitters = () => [...emitters.values()].filter(({ shown, record }) => shown && record);
const outdated = () => connection.phase !== "connected" && !history.paused;

let drawRequested = false;

function requestDraw() {
  if (drawRequested) return;
  drawRequested = true;
  requestAnimationFrame(draw);
}

function draw() {
  drawRequested = false;
  takeState();
  if (fitWanted && drawnEmitters().some(({ ring }) => ring)) {
    fit();
    fitWanted = false;
  }
  if (following) follow();
  scene.setView({
    areas: shownStations().flatMap(({ area }) => (area ? [area] : [])),
    receivers: shownStations().flatMap((station) =>
      station.receivers.map((each) => ({ ...each, colour: colourOf(station) })),
    ),
    emitters: drawnEmitters().map((emitter) => ({
      ...emitter,
      position: emitter.record.fix.position,
      selected: emitter.key === selected,
    })),
    outdated: outdated(),
  });
  timeline.update(local);
}

/** Bring every emitter to the time that is chosen. */
function takeState() {
  const state = history.state(trailFixes);
  // While paused those may come back that had to make room, but without end they may not.
  for (const { record } of state.values()) if (emitters.size < 2 * MAX_EMITTERS) emitterOf(record);
  for (const emitter of emitters.values()) {
    const { record, trail, lines } = state.get(emitter.key) ?? { record: null, trail: [], lines: new Map() };
    if (record !== emitter.record) {
      emitter.record = record;
      const { position, uncertainty } = record?.fix ?? {};
      emitter.ring = position ? ellipseRing(position, uncertainty) : null;
      emitter.tracks = (record?.fix.tracks ?? []).map((track) => ({
        ...track,
        ring: ellipseRing(track.position, track.uncertainty),
        ahead: placeAhead(track.position, track.velocity, AHEAD_S),
      }));
    }
    emitter.trail = trail;
    emitter.lines = lines;
  }
}

/** A station has the colour of its own frequency's emitter. */
function colourOf({ name, frequency_hz }) {
  return palette.style(emitterKey({ station: name, frequency_hz })).colour;
}

/** Keep the selected position within the middle of the map. */
function follow() {
  const position = emitters.get(selected)?.record?.fix.position;
  if (!position) return;
  const place = L.latLng(position.latitude, nearestLongitude(position.longitude, map.getCenter().lng));
  const size = map.getSize();
  const { x, y } = map.latLngToContainerPoint(place);
  const inside = Math.abs(x - size.x / 2) < 0.25 * size.x && Math.abs(y - size.y / 2) < 0.25 * size.y;
  if (!inside) map.panTo(place, { animate: false });
}

// --- words ---

const rates = [];
let announcedAt = 0;
let announced = "";

function announce(text) {
  byId("announcer").textContent = text;
}

/** Say the selected emitter's state, at most every ten seconds, and only if there is something new. */
function announceFix() {
  const emitter = emitters.get(selected);
  if (!emitter?.record || history.paused || Date.now() - announcedAt < ANNOUNCE_MS) return;
  const { fix } = emitter.record;
  const { uncertainty } = fix;
  const text = fix.position
    ? `${emitter.label}: ${spokenCoordinates(fix.position)}, within ${metres(uncertainty.semi_major_m)} by ` +
      `${metres(uncertainty.semi_minor_m)} at ${percent(uncertainty.probability)}`
    : `${emitter.label}: no fix, ${reasonText(fix.reason)}`;
  announcedAt = Date.now();
  if (text === announced) return;
  announced = text;
  announce(text);
}

function updateText() {
  const badge = byId("connection");
  badge.dataset.phase = connection.phase;
  const text = connectionText();
  const failed = ["waiting", "refused"].includes(connection.phase);
  setText(byId("connection-text"), failed ? "No connection" : text);
  byId("notice").hidden = !failed;
  if (failed) setText(byId("notice"), text);
  setText(byId("skipped"), skipped ? `${count(skipped)} skipped` : "");

  const listed = [...emitters.values()];
  const chosen = emitters.get(selected);
  legend.update(listed, selected);
  table.update(listed, local);
  const age = history.paused || !chosen?.record ? null : Math.max(0, (Date.now() - chosen.record.time) / 1000);
  details.update(chosen?.label ?? "", chosen?.record ?? null, { local, age, dropped: chosen?.dropped ?? 0 });
  const fix = chosen?.record?.fix;
  setText(byId("sheet-summary"), fix ? summaryText(chosen.label, fix) : "No fixes yet");
  byId("empty").hidden = history.length > 0;
  announceFix();
}

function summaryText(label, { position, uncertainty, reason }) {
  if (!position) return `${label}: no fix, ${reasonText(reason)}`;
  return `${label}: ${coordinates(position)} ± ${metres(uncertainty.semi_major_m)}`;
}

function updateRate() {
  const settled = connection.phase === "connected" && Date.now() - connectedAt > SETTLING_MS;
  if (settled) rates.push(arrived);
  else rates.length = 0;
  arrived = 0;
  if (rates.length > RATE_SLOTS) rates.shift();
  const rate = rates.reduce((sum, each) => sum + each, 0) / ((rates.length * TEXT_MS) / 1000);
  setText(byId("rate"), settled ? `${rate.toFixed(1)} fixes/s` : "");
}

// --- controls ---

function select(key) {
  selected = key;
  requestDraw();
  updateText();
}

const legend = new Legend({
  select,
  toggle(key, shown) {
    emitters.get(key).shown = shown;
    requestDraw();
  },
  toggleStation(name, shown) {
    if (shown) hiddenStations.delete(name);
    else hiddenStations.add(name);
    requestDraw();
  },
  heat(name) {
    heat.show(heat.station === name ? null : name);
  },
});
const details = new Details(announce);
const table = new FixTable();
const timeline = new Timeline(
  history,
  () => {
    requestDraw();
    document.body.dataset.paused = history.paused;
  },
  announce,
);
const heat = new HeatMap(map, "heat", ({ station, message, timestamp, cells }) => {
  legend.updateHeat(
    station,
    message || (timestamp ? `Window of ${clock(Date.parse(timestamp), local)}, ${cells}` : ""),
  );
  byId("heat-legend").hidden = timestamp === null;
});

function setFollowing(on) {
  following = on;
  setPressed(byId("follow"), on);
  requestDraw();
}

function setZone(toLocal) {
  local = toLocal;
  remember("zone", local ? "local" : "utc");
  setText(byId("zone"), local ? "Local time" : "UTC");
  updateText();
  requestDraw();
}

byId("fit").addEventListener("click", () => {
  setFollowing(false);
  fit();
});
byId("follow").addEventListener("click", () => setFollowing(!following));
byId("link").addEventListener("click", async () => {
  window.history.replaceState(null, "", viewHash());
  announce((await copyText(location.href)) ? "link copied" : "the link is in the address bar");
});
byId("zone").addEventListener("click", () => setZone(!local));
byId("trail").value = String(trailFixes);
byId("trail").addEventListener("change", ({ target }) => {
  trailFixes = Number(target.value);
  remember("trail", target.value);
  requestDraw();
});
byId("sheet-toggle").addEventListener("click", ({ currentTarget }) => {
  const open = currentTarget.getAttribute("aria-expanded") !== "true";
  currentTarget.setAttribute("aria-expanded", String(open));
  document.body.dataset.sheet = open ? "open" : "closed";
});
const changeTheme = startTheme(() => {
  setText(byId("theme"), theme() === "dark" ? "Light" : "Dark");
  requestDraw();
  if (map.hasLayer(graticule)) graticule.redraw();
});
byId("theme").addEventListener("click", changeTheme);

const container = map.getContainer();
for (const event of ["pointerdown", "wheel", "keydown"]) {
  container.addEventListener(event, () => (fitWanted = false), { passive: true });
}
map.on("dragstart", () => setFollowing(false));
map.on("click", ({ containerPoint }) => {
  const key = scene.emitterAt(containerPoint);
  if (key !== null) select(key);
});
map.on("mousemove", ({ latlng, containerPoint }) => {
  const { lat, lng } = latlng.wrap();
  setText(byId("pointer"), coordinates({ latitude: lat, longitude: lng }));
  container.classList.toggle("on-emitter", scene.emitterAt(containerPoint) !== null);
});
map.on("mouseout", () => setText(byId("pointer"), ""));
new ResizeObserver(() => map.invalidateSize({ animate: false })).observe(container);

setZone(local);
setInterval(() => {
  updateRate();
  updateText();
}, TEXT_MS);
showBackground();
new Feed({
  onFix,
  onStations,
  onState,
  onSkipped(number) {
    skipped += number;
  },
  onRestart() {
    announce("the server was started again");
  },
}).run();

/** For scripts and tests: Leaflet's map, and what is drawn on it now. */
window.localizeMap = {
  map,
  view: () => ({
    areas: shownStations().flatMap(({ area }) => (area ? [area] : [])),
    receivers: shownStations().flatMap(({ receivers }) => receivers),
    emitters: drawnEmitters().map(({ key, label, colour, record, ring, trail, tracks, lines }) => ({
      key,
      label,
      colour,
      fix: record.fix,
      ring,
      trail,
      tracks: tracks.map((track) => ({ ...track, line: lines.get(track.id) })),
    })),
    outdated: outdated(),
    paused: history.paused,
    kept: history.length,
    heat: heat.bounds && { station: heat.station, bounds: heat.bounds.toBBoxString() },
  }),
};
