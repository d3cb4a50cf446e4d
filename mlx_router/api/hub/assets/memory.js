// Memory over the last hour, with the limits below which pressure begins.

import { $, el, setText, svg } from "./dom.js";
import { clock, gigabytes } from "./format.js";

const LEVELS = ["moderate", "high", "critical"];
const HOUR = 3600;
const KEPT = 720; // an hour of them
const SHORTEST = 60; // seconds that the chart spans at least
const STEPS = [15, 30, 60, 120, 300, 600, 900];
const LEFT = 46;
const BOTTOM = 22;
const TOP = 8;
const HEIGHT = 200;
const TABLE_ROWS = 12;

let points = [];
let status = null;
let pointed = null; // the point that the pointer is at

export function setUpMemory() {
  const chart = $("chart");
  new ResizeObserver(draw).observe(chart.parentElement);
  chart.addEventListener("pointermove", (event) => {
    const scale = scales();
    if (!scale) return;
    const time = scale.time(event.clientX - chart.getBoundingClientRect().left);
    pointed = points.reduce((best, point) => (Math.abs(point.time - time) < Math.abs(best.time - time) ? point : best));
    draw();
  });
  chart.addEventListener("pointerleave", () => {
    pointed = null;
    draw();
  });
}

/** Of a new connection, whose first points are all there are. */
export function beginMemory() {
  points = [];
}

export function addPoints(added) {
  points = [...points, ...added].sort((one, other) => one.number - other.number).slice(-KEPT);
  // The clock may have been set, or the machine may have slept.
  const now = points.at(-1).time;
  points = points.filter((point) => Math.abs(now - point.time) < HOUR);
  draw();
}

export function showMemory(now) {
  status = now;
  const { memory, memory_limits: limits } = now;
  const pressure = `pressure ${now.memory_pressure}`;
  setText($("memory-now"), `${gigabytes(memory.available_gb)} of ${gigabytes(memory.total_gb)} available, ${pressure}`);
  setText($("available"), memory.available_gb.toFixed(1));
  setText($("available-of"), `of ${gigabytes(memory.total_gb)}`);
  const next = LEVELS.find((level) => memory.available_gb >= limits[`${level}_below_gb`]);
  const note = next ? `, ${next} below ${gigabytes(limits[`${next}_below_gb`])}` : "";
  setText($("pressure-note"), `Pressure ${now.memory_pressure}${note}`);
  $("pressure-note").dataset.pressure = now.memory_pressure;
  if (points.length === 0) draw();
}

function scales() {
  const width = $("chart").clientWidth;
  if (!status || !points.length || width < 100) return null;
  const times = points.map((point) => point.time);
  const end = Math.max(...times);
  const begin = Math.min(...times, end - SHORTEST);
  const most = niceMost(Math.max(status.memory.total_gb, 0.1));
  const right = width - 2;
  return {
    begin,
    end,
    most,
    right,
    x: (time) => LEFT + ((time - begin) / (end - begin)) * (right - LEFT),
    y: (gb) => TOP + (1 - Math.min(gb, most) / most) * (HEIGHT - TOP - BOTTOM),
    time: (x) => begin + ((x - LEFT) / (right - LEFT)) * (end - begin),
  };
}

/** A round number of gigabytes not below `gb`, which four lines divide well. */
function niceMost(gb) {
  const step = 4 * 10 ** Math.floor(Math.log10(gb / 4));
  return [0.5, 1, 1.5, 2, 3, 4, 6, 8, 10].map((times) => times * step).find((most) => most >= gb);
}

function draw() {
  const scale = scales();
  if (!scale) return;
  const { x, y, begin, end, most, right } = scale;
  const parts = [];
  const limits = status.memory_limits;
  const floor = y(0);
  LEVELS.forEach((level, index) => {
    const upper = limits[`${level}_below_gb`];
    const lower = index + 1 < LEVELS.length ? limits[`${LEVELS[index + 1]}_below_gb`] : 0;
    const height = y(lower) - y(upper);
    parts.push(svg("rect", { class: `band-${level}`, x: LEFT, y: y(upper), width: right - LEFT, height }));
  });
  for (let line = 0; line <= 4; line += 1) {
    const gb = (most * line) / 4;
    parts.push(svg("line", { class: "rule", x1: LEFT, x2: right, y1: y(gb), y2: y(gb) }));
    parts.push(svg("text", { x: LEFT - 7, y: y(gb) + 4, "text-anchor": "end" }, `${+gb.toFixed(2)}${line === 4 ? " GB" : ""}`));
  }
  const step = STEPS.find((seconds) => (end - begin) / seconds <= Math.max(2, right / 110)) ?? 1200;
  for (let time = Math.ceil(begin / step) * step; time <= end; time += step) {
    if (x(time) < LEFT + 18 || x(time) > right - 22) continue;
    parts.push(svg("text", { x: x(time), y: HEIGHT - 4, "text-anchor": "middle" }, clock(time, step < 60)));
  }
  for (const level of LEVELS) {
    const place = y(limits[`${level}_below_gb`]) + 14;
    if (place < floor) parts.push(svg("text", { class: `of-${level}`, x: right - 6, y: place, "text-anchor": "end" }, level));
  }
  const path = (field) => points.map((point, index) => `${index ? "L" : "M"}${x(point.time).toFixed(1)} ${y(point[field]).toFixed(1)}`).join("");
  parts.push(svg("path", { class: "router", d: path("router_gb") }));
  parts.push(svg("path", { class: "available", d: path("available_gb") }));
  if (pointed) parts.push(...reading(pointed, scale));
  $("chart").replaceChildren(...parts);
  describe();
}

function reading(point, { x, y, right }) {
  const place = x(point.time);
  const half = 120;
  return [
    svg("line", { class: "cursor", x1: place, x2: place, y1: TOP, y2: y(0) }),
    svg(
      "text",
      { class: "reading", x: Math.max(LEFT + half, Math.min(place, right - half)), y: TOP + 12, "text-anchor": "middle" },
      `${clock(point.time)}  ${gigabytes(point.available_gb)} available, ${gigabytes(point.router_gb)} router`,
    ),
  ];
}

function describe() {
  const least = points.reduce((low, point) => (point.available_gb < low.available_gb ? point : low));
  const last = points.at(-1);
  const limits = LEVELS.map((level) => `${level} below ${gigabytes(status.memory_limits[`${level}_below_gb`])}`);
  const swap = last.swap_used_gb > 0 ? ` Swap in use: ${gigabytes(last.swap_used_gb)}.` : "";
  setText(
    $("chart-text"),
    `Available: ${gigabytes(last.available_gb)} now, ${gigabytes(least.available_gb)} at the lowest (${clock(least.time, false)}). ` +
      `MLX Router holds ${gigabytes(last.router_gb)}.${swap} Pressure: ${limits.join(", ")}.`,
  );
  const every = Math.max(1, Math.ceil(points.length / TABLE_ROWS));
  const rows = points.filter((_, index) => (points.length - 1 - index) % every === 0).reverse();
  $("chart-rows").replaceChildren(
    ...rows.map((point) =>
      el(
        "tr",
        {},
        el("td", {}, clock(point.time)),
        el("td", { class: "num" }, gigabytes(point.available_gb)),
        el("td", { class: "num" }, gigabytes(point.router_gb)),
        el("td", { class: "num" }, gigabytes(point.swap_used_gb)),
        el("td", {}, point.pressure),
      ),
    ),
  );
}
