// The requests under way.

import { $, el, follow, setAttribute, setText } from "./dom.js";
import { count, duration, speed } from "./format.js";

const WORDS = { waiting: "Waiting", prefill: "Prefill", decoding: "Decoding" };

export function showRequests(status) {
  const { requests } = status;
  const waiting = requests.filter((request) => request.phase === "waiting").length;
  setText($("requests-count"), requests.length ? `${requests.length - waiting} running, ${waiting} waiting` : "");
  $("requests-table").hidden = requests.length === 0;
  $("requests-empty").hidden = requests.length > 0;
  // Not the id: a client may use one for several requests.
  follow($("requests-rows"), requests, (request) => request.number, create, update);
}

function create(request) {
  const cell = (label) => el("div", { role: "cell", class: "num", "data-label": label });
  const row = {
    model: el("b"),
    word: el("span"),
    detail: el("span", { class: "cell-more" }),
    prompt: cell("Prompt"),
    tokens: el("span"),
    meter: el("span"),
    speed: cell("Tokens/s"),
    time: cell("Time"),
  };
  row.phase = el("span", { class: "state busy" }, el("span", { class: "dot" }), row.word);
  row.bar = el("span", { class: "meter" }, row.meter);
  row.node = el(
    "div",
    { role: "row", class: "grid-row" },
    el("div", { role: "rowheader", class: "who" }, row.model, el("span", { class: "who-more" }, `${request.kind} · ${request.id}`)),
    el("div", { role: "cell", "data-label": "Phase" }, row.phase, row.detail),
    row.prompt,
    el("div", { role: "cell", class: "num", "data-label": "Answer" }, row.tokens, row.bar),
    row.speed,
    row.time,
  );
  return row;
}

function update(row, request) {
  setText(row.model, request.model ?? "the default model");
  setText(row.word, WORDS[request.phase]);
  setAttribute(row.phase, "data-state", request.phase);
  setText(row.detail, request.detail);
  setText(row.prompt, request.prompt_tokens ? count(request.prompt_tokens) : "–");
  setText(row.tokens, request.max_tokens ? `${count(request.completion_tokens)} of ${count(request.max_tokens)}` : "–");
  row.bar.hidden = !request.max_tokens;
  row.meter.style.width = `${Math.min(100, (100 * request.completion_tokens) / (request.max_tokens || 1))}%`;
  setText(row.speed, request.tokens_per_second ? speed(request.tokens_per_second) : "–");
  setText(row.time, duration(request.seconds));
}
