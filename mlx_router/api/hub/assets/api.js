// Requests to the server this page came from, with the API key if there is one.

const KEY = "mlx-router-key";
const PRINTABLE = /^[\x21-\x7e]+$/;

let key = null;
try {
  key = sessionStorage.getItem(KEY);
} catch {
  // No storage: the key is kept for as long as the page is open.
}

/** Said of a key that no header can carry. */
export const NOT_A_KEY = "A key has only letters, digits and signs of ASCII, and no spaces: copy it again.";

export const isKey = (text) => PRINTABLE.test(text);

export const hasKey = () => key !== null;

export function useKey(text) {
  key = text;
  try {
    if (text === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, text);
  } catch {
    // As above.
  }
}

/** What the server says is wrong. `status` is 0 if it did not answer. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let keyIsNeeded = () => {};

/** Calls back with the server's words when it wants another key. */
export function onKeyNeeded(callback) {
  keyIsNeeded = callback;
}

/** `path` is without the leading slash. With a body: a POST of JSON. Throws ServerError. */
export async function request(path, { body, signal } = {}) {
  if (key !== null && !isKey(key)) throw refused(new ServerError(NOT_A_KEY, 401));
  const headers = {};
  if (key !== null) headers.authorization = `Bearer ${key}`;
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  let response;
  try {
    // Relative, so that a proxy may serve all this under a path of its own.
    response = await fetch(new URL(`../${path}`, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.");
  }
  if (response.ok) return response;
  throw refused(new ServerError(await messageOf(response), response.status));
}

function refused(error) {
  if (error.status === 401) keyIsNeeded(error.message);
  return error;
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}

/** The server-sent events of a response, as {event, data}; data is text. Throws ServerError. */
export async function* serverEvents(response, onBytes = () => {}) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ServerError("The connection broke.");
      });
      if (done) return;
      onBytes();
      rest += decoder.decode(value, { stream: true });
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        let event = "message";
        const data = [];
        for (const line of block.split("\n")) {
          if (line.startsWith("event: ")) event = line.slice(7);
          else if (line.startsWith("data: ")) data.push(line.slice(6));
        }
        if (data.length) yield { event, data: data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
