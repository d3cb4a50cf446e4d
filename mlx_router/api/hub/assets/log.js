// The latest log lines.

import { $, el, setText } from "./dom.js";
import { clock, plural } from "./format.js";

const KEPT = 200;
const LEVELS = { DEBUG: 0, INFO: 1, WARNING: 2, ERROR: 3, CRITICAL: 3 };
// What stands before the message: time, level, name of the logger, request id.
const PREFIX = /^\S+ [A-Z]+ +(\S+) \[([^\]]*)\] /;

let lines = []; // {line, node}
let missed = []; // came while it was paused
let paused = false;
let fresh = true; // no line of this connection has come yet

export function setUpLog() {
  const place = $("log-lines");
  $("log-filter").addEventListener("input", filter);
  $("log-level").addEventListener("change", filter);
  $("log-pause").addEventListener("click", () => {
    paused = !paused;
    $("log-pause").setAttribute("aria-pressed", String(paused));
    setText($("log-pause"), paused ? "Resume" : "Pause");
    if (!paused) add(missed.splice(0));
    tell();
  });
  place.addEventListener("scroll", () => ($("log-end").hidden = atEnd()), { passive: true });
  $("log-end").addEventListener("click", () => {
    toEnd();
    place.focus();
  });
}

/** Of a new connection, whose first lines are all there are: they replace what is shown. */
export function beginLog() {
  fresh = true;
}

export function addLines(added) {
  if (fresh) {
    fresh = false;
    missed = []; // they are among these, too
    const newest = lines.at(-1)?.line;
    const known = newest && added.some((line) => line.number === newest.number && line.time === newest.time);
    if (known) added = added.filter((line) => line.number > newest.number);
    else if (!paused) clear();
  }
  if (paused) missed = [...missed, ...added].slice(-KEPT);
  else add(added);
  tell();
}

function add(added) {
  if (!added.length) return;
  const follows = atEnd();
  const place = $("log-lines");
  for (const line of added) {
    const node = nodeOf(line);
    lines.push({ line, node });
    node.hidden = !matches(line);
    place.append(node);
  }
  for (const { node } of lines.splice(0, Math.max(0, lines.length - KEPT))) node.remove();
  if (follows) toEnd();
}

function nodeOf(line) {
  const found = PREFIX.exec(line.text);
  const message = found ? line.text.slice(found[0].length) : line.text;
  const logger = found?.[1].replace(/^mlx_router\./, "");
  const where = found && (found[2] === "-" ? logger : `${logger} ${found[2]}`);
  return el(
    "div",
    { class: "log-line", "data-level": LEVELS[line.level] ?? 1 },
    el("time", {}, clock(line.time)),
    el("span", { class: "log-level" }, line.level),
    el("span", { class: "log-text" }, message, el("span", { class: "log-where" }, where ? `  ${where}` : "")),
  );
}

function clear() {
  for (const { node } of lines) node.remove();
  lines = [];
}

function matches(line) {
  const wanted = $("log-filter").value.trim().toLowerCase();
  return (LEVELS[line.level] ?? 1) >= Number($("log-level").value) && line.text.toLowerCase().includes(wanted);
}

function filter() {
  for (const { line, node } of lines) node.hidden = !matches(line);
  toEnd();
  tell();
}

function tell() {
  const shown = lines.filter(({ node }) => !node.hidden).length;
  const of = shown < lines.length ? ` of ${lines.length}` : "";
  const held = paused ? `, paused, ${missed.length} new` : "";
  setText($("log-count"), `${plural(shown, "line")}${of}${held}`);
}

function atEnd() {
  const place = $("log-lines");
  return place.scrollHeight - place.scrollTop - place.clientHeight < 24;
}

function toEnd() {
  const place = $("log-lines");
  place.scrollTop = place.scrollHeight;
  $("log-end").hidden = true;
}
