// The playground: a chat with a model, by the same API that every client uses.

import { request, ServerError, serverEvents } from "./api.js";
import { attached, picture, setAttached, setUpAttachments } from "./attachments.js";
import { $, announce, el, follow, setAttribute, setText } from "./dom.js";
import { plural, speed } from "./format.js";

const ENDS = { length: "the token limit is reached", content_filter: "filtered" };

let models = [];
let messages = []; // what was said, as the API takes it
let controller = null; // of the answer under way

export function setUpChat() {
  setUpAttachments(() => chosen()?.capabilities.vision ?? false, refuse);
  $("chat-model").addEventListener("change", showVision);
  $("chat-new").addEventListener("click", () => {
    controller?.abort();
    messages = [];
    setAttached([]);
    $("turns").replaceChildren($("turns-empty"));
    $("turns-empty").hidden = false;
    $("message").focus();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("stop").addEventListener("click", stop);
  $("message").addEventListener("keydown", (event) => {
    // An Enter that ends the choice of a character belongs to the input method.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  $("chat").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && controller) stop();
  });
}

export function showChatModels(status) {
  models = status.models.filter((model) => model.capabilities.chat && model.state !== "unusable");
  const select = $("chat-model");
  const before = select.value;
  follow(
    select,
    models,
    (model) => model.id,
    (model) => ({ node: el("option", { value: model.id }) }),
    ({ node }, model) => setText(node, `${model.id}${model.state === "ready" ? " (loaded)" : ""}`),
  );
  if (!before && models.length) {
    const first = [status.current_model, status.recommended_model].find((id) => models.some((model) => model.id === id));
    select.value = first ?? models[0].id;
  }
  $("send").disabled = models.length === 0;
  showVision();
}

const chosen = () => models.find((model) => model.id === $("chat-model").value);

function showVision() {
  const sees = chosen()?.capabilities.vision ?? false;
  $("attach").disabled = !sees;
  setAttribute($("attach"), "title", sees ? "Or paste it, or drop it here" : "This model reads text only");
}

function refuse(text) {
  addTurn("assistant", el("p", { class: "turn-error" }, text));
  announce(text);
}

function stop() {
  controller?.abort();
}

function addTurn(role, ...parts) {
  $("turns-empty").hidden = true;
  const name = el("span", { class: "unseen" }, role === "user" ? "You: " : "Answer: ");
  const turn = el("div", { class: `turn ${role}` }, name, ...parts);
  $("turns").append(turn);
  $("turns").scrollTop = $("turns").scrollHeight;
  return turn;
}

async function send() {
  const text = $("message").value.trim();
  const files = attached();
  const model = chosen();
  if (controller || !model || (!text && !files.length)) return;
  const images = files.map((file) => ({ type: "image_url", image_url: { url: file.url } }));
  const content = files.length ? [...images, ...(text ? [{ type: "text", text }] : [])] : text;
  const asked = addTurn("user", el("div", { class: "turn-images" }, ...files.map(picture)), el("div", { class: "turn-text" }, text));
  const answer = new Answer();
  $("message").value = "";
  setAttached([]);
  controller = new AbortController();
  showBusy(true);
  try {
    await answer.read(body(model.id, [...messages, { role: "user", content }]), controller.signal);
  } catch (error) {
    if (error.name === "AbortError") answer.end("Stopped");
    else answer.fail(error.message);
  }
  if (asked.isConnected) {
    // What was not answered is no part of the conversation; it can be sent again.
    if (!answer.text) {
      $("message").value ||= text;
      if (!attached().length) setAttached(files);
    } else messages.push({ role: "user", content }, { role: "assistant", content: answer.text });
  }
  controller = null;
  showBusy(false);
}

function body(model, said) {
  const system = $("system").value.trim();
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...said],
    temperature: number("temperature"),
    max_tokens: number("max-tokens"),
    stream: true,
    streaming_format: "sse",
    stream_options: { include_usage: true },
  };
}

function showBusy(busy) {
  const focused = document.activeElement;
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  if (focused === $("send") && busy) $("stop").focus();
  else if (focused === $("stop") && !busy) $("send").focus();
}

/** An answer on the page, while it is written. */
class Answer {
  text = "";
  #thoughts = "";
  #reason = "stop";
  #usage = null;
  #timings = null;

  constructor() {
    this.shown = el("div", { class: "turn-text" });
    this.thoughtsShown = el("div", { class: "thoughts-text" });
    this.details = el("details", { class: "thoughts", open: true, hidden: true }, el("summary", {}, "Reasoning"), this.thoughtsShown);
    this.note = el("p", { class: "turn-note" }, "Waiting for the first token…");
    this.turn = addTurn("assistant", this.details, this.shown, this.note);
  }

  async read(body, signal) {
    const response = await request("v1/chat/completions", { body, signal });
    for await (const { data } of serverEvents(response)) {
      if (data === "[DONE]") return this.end();
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message);
      this.#take(chunk);
    }
    throw new ServerError("The connection broke before the answer was complete.");
  }

  #take(chunk) {
    this.#usage = chunk.usage ?? this.#usage;
    this.#timings = chunk.timings ?? this.#timings;
    const choice = chunk.choices[0];
    if (!choice) return;
    this.#reason = choice.finish_reason ?? this.#reason;
    const { content, reasoning_content: thought } = choice.delta;
    if (!content && !thought) return;
    const place = $("turns");
    const follows = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
    this.#thoughts += thought ?? "";
    this.text += content ?? "";
    this.details.hidden = !this.#thoughts;
    if (thought) {
      this.thoughtsShown.append(thought);
      this.thoughtsShown.scrollTop = this.thoughtsShown.scrollHeight;
    }
    if (content) this.shown.append(content);
    setText(this.note, this.text ? "Writing…" : "Thinking…");
    if (follows) place.scrollTop = place.scrollHeight;
  }

  /** `how` it ended, if not by itself. */
  end(how = ENDS[this.#reason]) {
    const parts = [];
    if (how) parts.push(how[0].toUpperCase() + how.slice(1));
    if (this.#usage) parts.push(plural(this.#usage.completion_tokens, "token"));
    const rate = this.#timings?.predicted_per_second;
    if (rate) parts.push(`${speed(rate)} tokens/s`);
    if (!this.text && !this.#thoughts && !how) parts.unshift("Empty answer");
    setText(this.note, parts.join(" · "));
    announce(`Answer: ${this.text || parts.join(", ")}`);
    $("turns").scrollTop = $("turns").scrollHeight;
  }

  fail(message) {
    setText(this.note, "");
    this.turn.append(el("p", { class: "turn-error" }, message));
    $("turns").scrollTop = $("turns").scrollHeight;
    announce(message);
  }
}
