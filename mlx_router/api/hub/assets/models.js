// The models: what they are, in which state, and the buttons that change it.

import { request } from "./api.js";
import { $, announce, el, follow, setAttribute, setText } from "./dom.js";
import { ago, bytes, context, count, gigabytes } from "./format.js";

const MANY = 6;
const WORDS = {
  unloaded: "Not loaded",
  queued: "Queued",
  loading: "Loading",
  ready: "Loaded",
  unloading: "Unloading",
  unusable: "Unusable",
};
const ON_THE_WAY = new Set(["queued", "loading", "unloading"]);

const problems = new Map(); // model -> {message, state}: the answer to the latest click, and the state at that click
const clicked = new Map(); // model -> the action under way
let latest = null;

export function setUpModels() {
  $("models-filter").addEventListener("input", () => show(latest));
}

export function showModels(status) {
  latest = status;
  show(status);
}

function show(status) {
  if (status === null) return;
  const { models } = status;
  forgetProblems(models);
  const many = models.length > MANY;
  const wanted = many ? $("models-filter").value.trim().toLowerCase() : "";
  const found = models.filter((model) => described(model).includes(wanted));
  found.sort((one, other) => (one.state === "unusable") - (other.state === "unusable"));
  const loaded = models.filter((model) => model.state === "ready").length;
  $("models-filter").hidden = !many;
  setText($("models-count"), models.length ? `${loaded} of ${models.length} loaded` : "");
  $("models-empty").hidden = found.length > 0;
  setText(
    $("models-empty"),
    models.length ? `No model matches "${wanted}".` : "No models yet. Put one into the model directory: it is found without a restart.",
  );
  follow($("models-rows"), found, (model) => model.id, create, (row, model) => update(row, model, status));
}

/** An error is over when its model has come into another state, or is gone. */
function forgetProblems(models) {
  for (const [id, { state }] of problems) {
    const now = models.find((model) => model.id === id)?.state;
    // A load that fails passes through states of its own.
    if (now !== state && !ON_THE_WAY.has(now)) problems.delete(id);
  }
}

function described(model) {
  return [model.id, ...model.aliases, model.kind, WORDS[model.state], model.quantization ?? ""]
    .join(" ")
    .toLowerCase();
}

function create(model) {
  const slash = model.id.lastIndexOf("/");
  const row = {
    name: el("b", {}, model.id.slice(slash + 1)),
    more: el("span", { class: "who-more" }),
    word: el("span"),
    use: el("span", { class: "cell-more" }),
    size: el("span"),
    quantization: el("span", { class: "cell-more" }),
    context: el("span", { role: "cell", class: "num", "data-label": "Context" }),
    memory: el("span"),
    memoryNote: el("span", { class: "cell-more" }),
    used: el("span", { role: "cell", class: "num", "data-label": "Last use" }),
    load: el("button", { type: "button", class: "small" }),
    pin: el("button", { type: "button", class: "small pin" }),
    why: el("p", { role: "cell", class: "why", hidden: true }),
  };
  row.state = el("span", { class: "state" }, el("span", { class: "dot" }), row.word);
  row.load.addEventListener("click", () => {
    if (row.load.ariaDisabled !== "true") act(row.load.dataset.action, model.id);
  });
  row.pin.addEventListener("click", () => act("pin", model.id, { pinned: row.pin.ariaPressed !== "true" }));
  row.node = el(
    "div",
    { role: "row", class: "grid-row", "data-model": model.id },
    el("div", { role: "rowheader", class: "who", title: model.id }, row.name, row.more),
    el("div", { role: "cell", "data-label": "State" }, row.state, row.use),
    el("div", { role: "cell", class: "num", "data-label": "Size" }, row.size, row.quantization),
    row.context,
    el("div", { role: "cell", class: "num", "data-label": "Memory" }, row.memory, row.memoryNote),
    row.used,
    el("div", { role: "cell", class: "actions" }, row.load, row.pin),
    row.why,
  );
  return row;
}

function update(row, model, status) {
  const usable = model.state !== "unusable";
  const held = model.memory_gb > 0;
  const moving = ON_THE_WAY.has(model.state) || clicked.has(model.id);
  const kind = [model.kind, ...["vision", "tools", "reasoning"].filter((able) => model.capabilities[able] && able !== model.kind)];
  const owner = model.id.includes("/") ? [model.id.slice(0, model.id.lastIndexOf("/"))] : [];
  follow(
    row.more,
    [...owner, ...(usable ? kind : []), ...model.aliases.map((alias) => `alias ${alias}`)],
    (text) => text,
    (text) => ({ node: el("span", { class: owner.includes(text) ? "" : "chip" }, text) }),
    () => {},
  );
  setAttribute(row.state, "data-state", model.state);
  row.state.classList.toggle("busy", moving || model.active_requests > 0);
  setText(row.word, model.active_requests > 0 ? "Answering" : WORDS[model.state]);
  const use = [];
  if (model.active_requests) use.push(`${model.active_requests} active`);
  if (model.waiting_requests) use.push(`${model.waiting_requests} waiting`);
  setText(row.use, use.join(", "));
  setText(row.size, model.size_bytes ? bytes(model.size_bytes) : "–");
  setText(row.quantization, model.quantization ?? "");
  setText(row.context, usable && model.context_window ? context(model.context_window) : "–");
  setAttribute(row.context, "title", usable ? `${count(model.context_window)} tokens` : null);
  setText(row.memory, held ? gigabytes(model.memory_gb) : "–");
  const needs = model.memory_requirements.required_gb;
  setText(row.memoryNote, !held && usable ? `needs ${gigabytes(needs)}` : "");
  setText(row.used, model.last_used ? ago(status.time - model.last_used) : "never");

  const blocked = model.state === "unloaded" && !model.memory_requirements.can_load_now;
  const loaded = model.state === "ready" || model.state === "unloading";
  row.load.dataset.action = loaded ? "unload" : "load";
  row.load.hidden = row.pin.hidden = !usable;
  setText(row.load, moving ? `${clicked.get(model.id) ?? WORDS[model.state]}…` : loaded ? "Unload" : "Load");
  setAttribute(row.load, "aria-label", moving ? null : `${loaded ? "Unload" : "Load"} ${model.id}`);
  // Not disabled: that would take the focus away from who has just pressed it.
  setAttribute(row.load, "aria-disabled", moving || blocked ? "true" : null);
  setText(row.pin, model.pinned ? "Pinned" : "Pin");
  setAttribute(row.pin, "aria-label", `${model.pinned ? "Pinned" : "Pin"} ${model.id}`);
  setAttribute(row.pin, "aria-pressed", String(model.pinned));
  setAttribute(row.pin, "title", "A pinned model stays in memory once it is loaded");

  const problem = problems.get(model.id)?.message ?? model.problem;
  const why = problem ?? (blocked ? model.memory_requirements.load_status_reason : "");
  row.why.hidden = !why;
  row.why.classList.toggle("bad", Boolean(problem));
  setText(row.why, why);
}

const DOING = { load: "Loading", unload: "Unloading" };

async function act(action, model, more = {}) {
  if (clicked.has(model)) return;
  problems.delete(model);
  const state = latest.models.find((one) => one.id === model)?.state;
  if (action in DOING) clicked.set(model, DOING[action]);
  show(latest);
  try {
    const response = await request(`admin/models/${action}`, { body: { model, ...more } });
    const now = await response.json();
    Object.assign(latest.models.find((one) => one.id === model) ?? {}, now);
    announce(action === "pin" ? `${model} is ${now.pinned ? "pinned" : "no longer pinned"}` : `${model}: ${WORDS[now.state]}`);
  } catch (error) {
    problems.set(model, { message: error.message, state });
    announce(error.message);
  } finally {
    clicked.delete(model);
    show(latest);
  }
}
