// Small helpers for the page's elements. Text is only ever set as text: names come from anywhere.

/** A new element. `properties` are set on it; those named `data-…`, `aria-…`, `role`, `for`, `scope` as attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (/^(data-|aria-|role$|for$|scope$)/.test(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Set an element's text, and touch nothing where it is so already. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A toggle button's state. */
export function setPressed(button, pressed) {
  button.setAttribute("aria-pressed", String(pressed));
}

/** Copy to the clipboard, also where the page did not come over HTTPS. Returns whether it worked. */
export async function copyText(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  const area = element("textarea", { value: text, readOnly: true, className: "visually-hidden" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}
