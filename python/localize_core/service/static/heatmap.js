// The likelihood of the emitter's place over a station's area, fetched while it is switched on.

import { count } from "./format.js";

const REFRESH_MS = 3000;
const SHADES = 64;

// Viridis (Smith, van der Walt & Firing 2015) at nine equal steps, from the improbable to the probable.
const VIRIDIS = [
  [68, 1, 84],
  [71, 45, 123],
  [59, 82, 139],
  [44, 114, 142],
  [33, 145, 140],
  [40, 174, 128],
  [94, 201, 98],
  [173, 220, 48],
  [253, 231, 37],
];

/** Colour of a place by the share of probability, 0 to 1, that lies at more probable places: [r, g, b, a]. */
export function shade(share) {
  const at = (1 - share) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const mixed = VIRIDIS[low].map((value, k) => value + (at - low) * (VIRIDIS[low + 1][k] - value));
  return [...mixed, 255 * (0.05 + 0.7 * Math.min(1, 4 * (1 - share)))];
}

/**
 * For every cell the share of probability in cells that are more probable, in steps of 1/SHADES: the cells below a
 * share s are the smallest region that holds s, however fine the grid is.
 */
export function shares(probability) {
  const sorted = Float64Array.from(probability).sort();
  const total = sorted.reduce((sum, value) => sum + value, 0);
  const limits = []; // limits[k]: the probability below which cells are beyond a share of (k + 1) / SHADES
  let sum = 0;
  for (let index = sorted.length - 1; index >= 0 && limits.length < SHADES - 1; index--) {
    sum += sorted[index];
    while (limits.length < SHADES - 1 && sum >= ((limits.length + 1) / SHADES) * total) limits.push(sorted[index]);
  }
  return probability.map((value) => {
    let [low, high] = [0, limits.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (limits[middle] > value) low = middle + 1;
      else high = middle;
    }
    return low / SHADES;
  });
}

/** Paint a grid of equal steps in latitude on a canvas whose rows are equal steps of the Mercator projection. */
function paint(canvas, { rows, columns, probability, bounds }) {
  const cells = new ImageData(columns, rows);
  const colours = Array.from({ length: SHADES + 1 }, (_, k) => shade(k / SHADES));
  shares(probability).forEach((share, k) => cells.data.set(colours[Math.round(share * SHADES)], 4 * k));
  const source = new OffscreenCanvas(columns, rows);
  source.getContext("2d").putImageData(cells, 0, 0);

  canvas.width = columns;
  canvas.height = Math.max(rows, 512);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const mercator = (latitude) => L.CRS.EPSG3857.latLngToPoint(L.latLng(latitude, 0), 10).y;
  const [top, bottom] = [mercator(bounds.north), mercator(bounds.south)];
  const edge = (row) => {
    const latitude = bounds.north - (row / rows) * (bounds.north - bounds.south);
    return Math.round(((mercator(latitude) - top) / (bottom - top)) * canvas.height);
  };
  for (let row = 0; row < rows; row++) {
    context.drawImage(source, 0, row, columns, 1, 0, edge(row), columns, edge(row + 1) - edge(row));
  }
}

/** `onState({ station, message, timestamp })` tells what is shown: `message` where there is no likelihood. */
export class HeatMap {
  #map;
  #pane;
  #onState;
  #overlay = null;
  #abort = null;
  #station = null;

  constructor(map, pane, onState) {
    this.#map = map;
    this.#pane = pane;
    this.#onState = onState;
  }

  /** The station whose likelihood is shown, or null. */
  get station() {
    return this.#station;
  }

  get bounds() {
    return this.#overlay?.getBounds() ?? null;
  }

  /** Show a station's likelihood from now on, and no other's; null shows none. */
  show(station) {
    this.#abort?.abort();
    this.#clear();
    this.#station = station;
    this.#onState({ station, message: station === null ? "" : "loading …", timestamp: null });
    if (station === null) return;
    this.#abort = new AbortController();
    this.#refresh(station, this.#abort.signal);
  }

  async #refresh(station, signal) {
    while (!signal.aborted) {
      if (!document.hidden) {
        try {
          const answer = await fetch(`stations/${encodeURIComponent(station)}/likelihood`, {
            signal,
            cache: "no-store",
          });
          const body = await answer.json().catch(() => ({}));
          if (signal.aborted) return;
          if (answer.ok) this.#draw(station, body);
          else this.#fail(station, body.error?.message ?? `the server answered ${answer.status}`);
        } catch {
          if (signal.aborted) return;
          this.#fail(station, "the server cannot be reached");
        }
      }
      await new Promise((resolve) => setTimeout(resolve, REFRESH_MS));
    }
  }

  #draw(station, grid) {
    const corners = [
      [grid.bounds.south, grid.bounds.west],
      [grid.bounds.north, grid.bounds.east],
    ];
    if (!this.#overlay) {
      const canvas = document.createElement("canvas");
      // An SVG overlay takes any element and leaves it as it is.
      this.#overlay = L.svgOverlay(canvas, corners, { pane: this.#pane, className: "heat" }).addTo(this.#map);
    }
    this.#overlay.setBounds(corners);
    paint(this.#overlay.getElement(), grid);
    const cells = `${count(grid.columns)} × ${count(grid.rows)} cells`;
    this.#onState({ station, message: "", timestamp: grid.timestamp, cells });
  }

  #fail(station, message) {
    this.#clear();
    this.#onState({ station, message, timestamp: null });
  }

  #clear() {
    this.#overlay?.remove();
    this.#overlay = null;
  }
}
