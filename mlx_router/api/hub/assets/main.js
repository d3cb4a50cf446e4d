// Puts the page together: what comes in goes to the sections.

import { hasKey, isKey, NOT_A_KEY, onKeyNeeded, useKey } from "./api.js";
import { setUpChat, showChatModels } from "./chat.js";
import { $, announce, setAttribute, setText, svg } from "./dom.js";
import { count, duration, plural, speed } from "./format.js";
import { watch } from "./live.js";
import { addLines, beginLog, setUpLog } from "./log.js";
import { addPoints, beginMemory, setUpMemory, showMemory } from "./memory.js";
import { setUpModels, showModels } from "./models.js";
import { showRequests } from "./requests.js";

const SPARK_POINTS = 60; // one a second

// --- theme ----------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
const root = document.documentElement;

function showTheme() {
  const theme = root.dataset.theme ?? "auto";
  setText($("theme-name"), theme);
  $("theme").setAttribute("aria-label", `Theme: ${theme}`);
}

$("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    localStorage.setItem("mlx-router-theme", next);
  } catch {
    // No storage: it holds for as long as the page is open.
  }
  showTheme();
});

// --- API key --------------------------------------------------------------------------------

const NO_KEY = "This server answers to those who have an API key.";

onKeyNeeded((message) => {
  setText($("key-message"), hasKey() ? message : NO_KEY);
  useKey(null);
  $("forget-key").hidden = true;
  if (!$("key-dialog").open) $("key-dialog").showModal();
});

$("key-form").addEventListener("submit", (event) => {
  const key = $("key").value.trim();
  if (!isKey(key)) {
    event.preventDefault(); // the dialog stays open
    setText($("key-message"), NOT_A_KEY);
    $("key").focus();
    return;
  }
  useKey(key);
  $("key").value = "";
  retry();
});

$("forget-key").addEventListener("click", () => {
  useKey(null);
  location.reload();
});

// --- what the server tells ------------------------------------------------------------------

const speeds = [];
let health = null;
let models = []; // told again only when they change

function showStatus(status) {
  models = status.models ??= models;
  setText($("version"), status.version);
  setText($("uptime"), `up ${duration(status.uptime_seconds)}`);
  setHealth(status.status);
  $("stopping").hidden = !status.stopping;
  $("read-only").hidden = status.control;
  $("log").hidden = !status.control;
  document.body.classList.toggle("no-control", !status.control);

  const { requests } = status;
  const waiting = requests.filter((request) => request.phase === "waiting").length;
  setText($("speed"), speed(status.tokens_per_second));
  setText($("speed-note"), `${plural(status.completion_tokens, "token")} since the start`);
  setText($("active"), count(requests.length));
  setText($("active-note"), `${count(waiting)} waiting, ${plural(status.request_count, "request")} since the start`);
  const current = models.find((model) => model.id === status.current_model);
  setText($("current"), current ? current.id.slice(current.id.lastIndexOf("/") + 1) : "None");
  setAttribute($("current"), "title", status.current_model);
  const loaded = models.filter((model) => model.state === "ready").length;
  setText($("current-note"), `${plural(loaded, "model")} loaded`);
  spark(status.tokens_per_second);

  showModels(status);
  showRequests(status);
  showMemory(status);
  showChatModels(status);
}

function setHealth(status) {
  const word = status[0].toUpperCase() + status.slice(1);
  if (health !== null && health !== status) announce(`Status: ${word}`);
  health = status;
  $("health").dataset.status = status;
  setText($("health-word"), word);
}

function spark(tokensPerSecond) {
  speeds.push(tokensPerSecond);
  speeds.splice(0, speeds.length - SPARK_POINTS);
  const { clientWidth: width, clientHeight: height } = $("spark");
  const most = Math.max(...speeds);
  $("spark").replaceChildren();
  if (most === 0 || width === 0) return;
  const x = (index) => ((SPARK_POINTS - speeds.length + index) / (SPARK_POINTS - 1)) * width;
  const line = speeds.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${((1 - value / most) * (height - 4) + 2).toFixed(1)}`).join("");
  const under = `${line}L${width} ${height}L${x(0)} ${height}Z`;
  $("spark").append(svg("path", { class: "under", d: under }), svg("path", { d: line }));
}

function began() {
  $("lost").hidden = true;
  $("forget-key").hidden = !hasKey();
  if ($("key-dialog").open) $("key-dialog").close();
  beginLog();
  beginMemory();
}

function lost(message, seconds) {
  const locked = seconds === null;
  setHealth(locked ? "locked" : "offline");
  $("lost").hidden = false;
  // It does not count down: a status is read aloud each time it changes.
  const next = seconds > 2 ? ` Trying again in ${seconds} s…` : " Trying again…";
  setText($("lost-text"), locked ? NO_KEY : message + next);
  setText($("retry"), locked ? "Enter a key" : "Try now");
}

showTheme();
setUpModels();
setUpMemory();
setUpChat();
setUpLog();
const retry = watch({ status: showStatus, memory: addPoints, log: addLines, began, lost });
$("retry").addEventListener("click", retry);
