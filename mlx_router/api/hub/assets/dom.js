// Making and changing elements. Text goes in as text, never as HTML.

export const $ = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** An element; `on…` properties are listeners, the others attributes. */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Changes the text if it is another one: what stays the same keeps its selection. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Says something to screen readers. */
export function announce(text) {
  const place = $("announce");
  place.textContent = "";
  place.textContent = text;
}

const lists = new WeakMap();

/**
 * Makes the children of `parent` follow `items`: those that stay are updated in place, so that the
 * focus stays where it is. `create(item)` gives an object with a `node`; `update(object, item)`.
 */
export function follow(parent, items, keyOf, create, update) {
  const known = lists.get(parent) ?? new Map();
  lists.set(parent, known);
  const keys = new Set(items.map(keyOf));
  // First: a node that has to make way for its neighbour is put in anew, and loses the focus.
  for (const [key, { node }] of known) {
    if (keys.has(key)) continue;
    node.remove();
    known.delete(key);
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (!known.has(key)) known.set(key, create(item));
    const shown = known.get(key);
    update(shown, item);
    if (shown.node === place) place = place.nextElementSibling;
    else parent.insertBefore(shown.node, place);
  }
}
