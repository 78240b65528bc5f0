// What is drawn over the map: areas, receivers, and of every emitter trail, tracks, ellipse and position.

import { nearestLongitude } from "./geodesy.js";
import { ScreenCanvas } from "./screen_canvas.js";
import { themeColour } from "./theme.js";

const TRAIL_SHADES = 8;
const POSITION_RADIUS = 6;
const CLICK_RADIUS = 16;
const LABEL_CHARACTERS = 40;

/**
 * Draws a view: `{ areas: [{ south, west, north, east }], receivers: [{ name, latitude, longitude, colour }],
 * emitters: [{ key, label, colour, dash, position, ring, trail, tracks, lines, selected }], outdated }`.
 * `position` and `ring` are null where there is no fix; `trail`: positions, newest first; `tracks`: [{ id, state,
 * position, ring, ahead }]; `lines`: by their id, places, newest first.
 */
export const Scene = ScreenCanvas.extend({
  _view: { areas: [], receivers: [], emitters: [], outdated: false },

  setView(view) {
    this._view = view;
    this.redraw();
  },

  /** Key of the emitter whose position is at a point of the screen, or null. */
  emitterAt(point) {
    let nearest = null;
    let distance = CLICK_RADIUS;
    for (const { key, position } of this._view.emitters) {
      if (!position) continue;
      const away = this._point(position.latitude, position.longitude).distanceTo(point);
      if (away <= distance) [nearest, distance] = [key, away];
    }
    return nearest;
  },

  draw(context, size) {
    const { areas, receivers, emitters, outdated } = this._view;
    this._middle = this._map.getCenter().lng;
    this._labels = [];
    this._boxes = [];
    context.lineJoin = "round";
    for (const area of areas) this._drawArea(context, area);
    const opacity = outdated ? 0.4 : 1;
    for (const emitter of emitters) this._drawTrail(context, emitter, opacity);
    for (const emitter of emitters) for (const track of emitter.tracks) this._drawTrack(context, emitter, track, opacity);
    for (const emitter of emitters) if (emitter.ring) this._drawEllipse(context, emitter, opacity);
    context.globalAlpha = 1;
    for (const receiver of receivers) this._drawReceiver(context, receiver);
    context.globalAlpha = opacity;
    for (const emitter of emitters) if (emitter.position) this._drawPosition(context, emitter);
    context.globalAlpha = 1;
    // Positions were drawn last, but their labels are worth more than those of receivers.
    for (const label of this._labels.reverse()) this._drawLabel(context, label, size);
  },

  /** Where a place is on the screen, in that copy of the world that is nearest to the middle. */
  _point(latitude, longitude) {
    return this.toPoint(latitude, nearestLongitude(longitude, this._middle));
  },

  _path(context, places) {
    const [first] = places;
    const turn = nearestLongitude(first[1], this._middle) - first[1];
    context.beginPath();
    for (const [latitude, longitude] of places) {
      const { x, y } = this.toPoint(latitude, longitude + turn);
      context.lineTo(x, y);
    }
    context.closePath();
  },

  _drawArea(context, { south, west, north, east }) {
    const end = east < west ? east + 360 : east;
    const corners = [
      [south, west],
      [north, west],
      [north, end],
      [south, end],
    ];
    this._path(context, corners);
    context.setLineDash([6, 4]);
    context.lineWidth = 1.5;
    context.strokeStyle = themeColour("--area");
    context.stroke();
    context.setLineDash([]);
  },

  _drawTrail(context, { trail, colour }, opacity) {
    context.fillStyle = colour;
    const perShade = Math.ceil(trail.length / TRAIL_SHADES);
    for (let shade = TRAIL_SHADES - 1; shade >= 0; shade--) {
      context.globalAlpha = opacity * 0.75 * (1 - shade / TRAIL_SHADES) ** 1.5;
      context.beginPath();
      for (const { latitude, longitude } of trail.slice(shade * perShade, (shade + 1) * perShade)) {
        const { x, y } = this._point(latitude, longitude);
        context.moveTo(x + 2, y);
        context.arc(x, y, 2, 0, 2 * Math.PI);
      }
      context.fill();
    }
  },

  /** Its line, its ellipse in fine dashes, and an arrow to where it will be. */
  _drawTrack(context, { colour, lines }, { id, state, position, ring, ahead }, opacity) {
    const here = this._point(position.latitude, position.longitude);
    const there = this._point(ahead.latitude, ahead.longitude);
    const line = (lines.get(id) ?? [position]).map(({ latitude, longitude }) => this._point(latitude, longitude));
    this._path(context, ring);
    context.globalAlpha = opacity * (state === "coasting" ? 0.5 : 1);
    context.setLineDash([2, 3]);
    context.lineWidth = 1;
    context.strokeStyle = colour;
    context.stroke();
    context.setLineDash([]);
    const head = Math.atan2(there.y - here.y, there.x - here.x);
    context.beginPath();
    for (const { x, y } of line) context.lineTo(x, y);
    context.moveTo(here.x, here.y);
    context.lineTo(there.x, there.y);
    if (here.distanceTo(there) > 4) {
      for (const side of [-0.45, 0.45]) {
        context.moveTo(there.x, there.y);
        context.lineTo(there.x - 9 * Math.cos(head + side), there.y - 9 * Math.sin(head + side));
      }
    }
    for (const [width, style] of [
      [4.5, themeColour("--ground")],
      [2, colour],
    ]) {
      context.lineWidth = width;
      context.strokeStyle = style;
      context.stroke();
    }
    this._labels.push({ text: `#${id}`, x: here.x, y: here.y - 8, align: "beside" });
  },

  _drawEllipse(context, { ring, colour, dash, selected }, opacity) {
    this._path(context, ring);
    context.globalAlpha = 0.14 * opacity;
    context.fillStyle = colour;
    context.fill();
    context.globalAlpha = 0.8 * opacity;
    context.lineWidth = selected ? 5.5 : 4;
    context.strokeStyle = themeColour("--ground");
    context.stroke();
    context.globalAlpha = opacity;
    context.setLineDash(dash);
    context.lineWidth = selected ? 2.5 : 1.5;
    context.strokeStyle = colour;
    context.stroke();
    context.setLineDash([]);
  },

  _drawReceiver(context, { name, latitude, longitude, colour }) {
    const { x, y } = this._point(latitude, longitude);
    context.beginPath();
    context.moveTo(x, y - 8);
    context.lineTo(x + 7.5, y + 5);
    context.lineTo(x - 7.5, y + 5);
    context.closePath();
    context.lineWidth = 4;
    context.strokeStyle = themeColour("--ground");
    context.stroke();
    context.lineWidth = 1.5;
    context.strokeStyle = themeColour("--ink");
    context.fillStyle = colour;
    context.fill();
    context.stroke();
    this._labels.push({ text: name, x, y: y + 18, align: "below" });
  },

  _drawPosition(context, { label, position, colour }) {
    const { x, y } = this._point(position.latitude, position.longitude);
    context.beginPath();
    context.arc(x, y, POSITION_RADIUS, 0, 2 * Math.PI);
    context.fillStyle = colour;
    context.fill();
    context.lineWidth = 2.5;
    context.strokeStyle = themeColour("--ground");
    context.stroke();
    context.beginPath();
    context.arc(x, y, POSITION_RADIUS + 1.5, 0, 2 * Math.PI);
    context.lineWidth = 1;
    context.strokeStyle = themeColour("--ink");
    context.stroke();
    this._labels.push({ text: label, x, y: y + 4, align: "beside" });
  },

  /** Text with a rim of the ground's colour; left out where it would lie over another label. */
  _drawLabel(context, { text: whole, x, y, align }, size) {
    if (x < 0 || x > size.x || y < 0 || y > size.y) return; // nor does what it belongs to show
    const text = whole.length > LABEL_CHARACTERS ? `${whole.slice(0, LABEL_CHARACTERS - 1)}…` : whole;
    context.font = "600 12px system-ui, sans-serif";
    const width = context.measureText(text).width;
    let left = align === "below" ? x - width / 2 : x + 13;
    if (align === "beside" && left + width > size.x) left = x - 13 - width;
    const box = { left, right: left + width, top: y - 12, bottom: y + 3 };
    const covered = this._boxes.some(
      (other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom,
    );
    if (covered) return;
    this._boxes.push(box);
    context.textAlign = "left";
    context.lineWidth = 3.5;
    context.strokeStyle = themeColour("--ground");
    context.strokeText(text, left, y);
    context.fillStyle = themeColour("--ink");
    context.fillText(text, left, y);
  },
});
