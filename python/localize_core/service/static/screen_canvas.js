// A map layer that paints the whole view anew whenever the map moves. Used on maps without zoom animation.

const { Browser, DomUtil, Layer, Util } = L;

/** `options.pane`: of the map. Heirs have `draw(context, size)`, with `size` in CSS pixels. */
export const ScreenCanvas = Layer.extend({
  initialize(options) {
    Util.setOptions(this, options);
  },

  onAdd(map) {
    this._canvas = DomUtil.create("canvas", "screen-canvas", this.getPane());
    this._canvas.setAttribute("aria-hidden", "true");
    this._context = this._canvas.getContext("2d");
    map.on("move zoom viewreset resize", this.redraw, this);
    this.redraw();
  },

  onRemove(map) {
    map.off("move zoom viewreset resize", this.redraw, this);
    this._canvas.remove();
  },

  redraw() {
    const size = this._map.getSize();
    const ratio = Browser.retina ? window.devicePixelRatio : 1;
    const [width, height] = [Math.round(size.x * ratio), Math.round(size.y * ratio)];
    if (this._canvas.width !== width || this._canvas.height !== height) {
      this._canvas.width = width;
      this._canvas.height = height;
      this._canvas.style.width = `${size.x}px`;
      this._canvas.style.height = `${size.y}px`;
    }
    this._origin = this._map.getPixelBounds().min;
    DomUtil.setPosition(this._canvas, this._map.containerPointToLayerPoint([0, 0]));
    this._context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this._context.clearRect(0, 0, size.x, size.y);
    this.draw(this._context, size);
  },

  /** Where a place is on the canvas; unlike Leaflet's own, not rounded to pixels, which would make curves uneven. */
  toPoint(latitude, longitude) {
    return this._map.project([latitude, longitude]).subtract(this._origin);
  },
});
