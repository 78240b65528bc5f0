// Light and dark: the system's wish, or the user's own choice. And what else this browser is to remember.

const system = window.matchMedia("(prefers-color-scheme: dark)");
let colours = {};

/** What was remembered under `key`, or `fallback`. */
export function remembered(key, fallback) {
  try {
    return localStorage.getItem(`gr-localize.${key}`) ?? fallback;
  } catch {
    return fallback; // storage is switched off
  }
}

export function remember(key, value) {
  try {
    localStorage.setItem(`gr-localize.${key}`, value);
  } catch {
    // storage is switched off
  }
}

/** "light" or "dark". */
export function theme() {
  return document.documentElement.dataset.theme;
}

/** The present value of a colour of map.css. */
export function themeColour(name) {
  colours[name] ??= getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return colours[name];
}

function apply(changed) {
  document.documentElement.dataset.theme = remembered("theme", system.matches ? "dark" : "light");
  colours = {};
  changed();
}

/** Set the theme, and follow the system. Returns a function that changes between light and dark. */
export function startTheme(changed) {
  system.addEventListener("change", () => apply(changed));
  apply(changed);
  return () => {
    remember("theme", theme() === "dark" ? "light" : "dark");
    apply(changed);
  };
}
