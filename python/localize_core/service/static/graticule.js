// Parallels and meridians with labels: the background of a map without tiles.

import { ScreenCanvas } from "./screen_canvas.js";
import { themeColour } from "./theme.js";

const SPACING_PX = 110;
const EDGE_PX = 24; // what a label needs beside its meridian
const STEPS = [30, 20, 10, 5, 2, 1];

/** The smallest round step, in degrees, of at least `degrees`. */
function roundStep(degrees) {
  let step = STEPS[0];
  for (let scale = 1; scale >= 1e-6; scale /= 10) {
    for (const each of STEPS) {
      if (scale < 1 && each > 5) continue; // 20 and 10 are there already
      if (each * scale < degrees) return step;
      step = each * scale;
    }
  }
  return step;
}

function label(degrees, step, positive, negative) {
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const turned = positive === "E" ? ((((degrees + 180) % 360) + 360) % 360) - 180 : degrees;
  const text = Math.abs(turned).toFixed(digits);
  const half = Number(text) === 0 || (positive === "E" && Number(text) === 180);
  return `${text}°${half ? "" : turned < 0 ? negative : positive}`;
}

export const Graticule = ScreenCanvas.extend({
  draw(context, size) {
    const map = this._map;
    const bounds = map.getBounds();
    const perPixel = (bounds.getEast() - bounds.getWest()) / size.x;
    const latitude = Math.min(Math.abs(map.getCenter().lat), 80);
    const meridians = roundStep(perPixel * SPACING_PX);
    const parallels = roundStep(perPixel * Math.cos((latitude * Math.PI) / 180) * SPACING_PX);

    context.lineWidth = 1;
    context.strokeStyle = themeColour("--graticule");
    context.font = "11px system-ui, sans-serif";
    const labels = [];
    context.beginPath();
    for (let k = Math.ceil(bounds.getWest() / meridians); k * meridians <= bounds.getEast(); k++) {
      const x = Math.round(map.latLngToContainerPoint([0, k * meridians]).x) + 0.5;
      context.moveTo(x, 0);
      context.lineTo(x, size.y);
      labels.push([label(k * meridians, meridians, "E", "W"), x, 12, "center"]);
    }
    for (let k = Math.ceil(bounds.getSouth() / parallels); k * parallels <= bounds.getNorth(); k++) {
      if (Math.abs(k * parallels) > 85) continue;
      const y = Math.round(map.latLngToContainerPoint([k * parallels, 0]).y) + 0.5;
      context.moveTo(0, y);
      context.lineTo(size.x, y);
      labels.push([label(k * parallels, parallels, "N", "S"), size.x - 6, y - 5, "right"]);
    }
    context.stroke();

    context.fillStyle = themeColour("--muted");
    context.strokeStyle = themeColour("--ground");
    context.lineWidth = 3;
    for (const [text, x, y, align] of labels) {
      if (x < EDGE_PX || (align === "center" && x > size.x - EDGE_PX) || y < 12) continue;
      context.textAlign = align;
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    }
  },
});
