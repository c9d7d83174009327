// The public API: one call, one stream, and the key that both send.

const KEY = "checkout-api-key";
const READ_MS = 15_000;
const WRITE_MS = 30_000;
const SILENT_MS = 30_000; // the server writes every ten seconds
const AGAIN_MS = 2_000;
const SPREAD_MS = 4_000;

/** Tells, as `signed-out`, that a key was refused; the event's detail is the problem. */
export const session = new EventTarget();

export function isSignedIn() {
  return sessionStorage.getItem(KEY) !== null;
}

export function signIn(key) {
  sessionStorage.setItem(KEY, key);
}

export function signOut(problem = null) {
  sessionStorage.removeItem(KEY);
  session.dispatchEvent(new CustomEvent("signed-out", { detail: problem }));
}

/** An answer that is no success, or none at all (status 0). */
export class Problem extends Error {
  constructor(status, title, detail, errors = [], retryAfter = 0) {
    super(detail);
    Object.assign(this, { status, title, detail, errors, retryAfter });
  }
}

/** Ask the API; returns the answer's JSON, null where the caller's `etag` still holds. */
export async function call(path, { method = "GET", body, etag, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (etag) headers["If-None-Match"] = etag;
  const limit = AbortSignal.timeout(method === "GET" ? READ_MS : WRITE_MS);
  const answer = await send(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
  });
  if (answer.status === 304) return null;
  try {
    const content = await answer.json();
    return etag === undefined ? content : { content, etag: answer.headers.get("ETag") };
  } catch (error) {
    throw unreachable(error);
  }
}

/**
 * Follow an order's events after a number: yields each, and returns whether that was all for good. Calls `opened` once
 * it is connected.
 * EventSource would do it, but sends no Authorization.
 */
export async function* follow(path, last, signal, opened) {
  const watch = new AbortController();
  let timer = setTimeout(() => watch.abort(), READ_MS);
  const answer = await send(path, {
    headers: { Accept: "text/event-stream", "Last-Event-ID": String(last) },
    signal: AbortSignal.any([signal, watch.signal]),
  });
  try {
    if (answer.status === 204) return true;
    opened();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parse = parser();
    for (;;) {
      clearTimeout(timer);
      timer = setTimeout(() => watch.abort(), SILENT_MS);
      const { value, done } = await reader.read();
      if (done) return false;
      for (const event of parse(value)) {
        if (event.type === "end") return true;
        yield JSON.parse(event.data);
      }
    }
  } catch (error) {
    throw error instanceof Problem ? error : unreachable(error);
  } finally {
    clearTimeout(timer);
    watch.abort();
  }
}

/** How long to wait before a stream is opened again: as the API asks, or so that not all pages come back at once. */
export function beforeNextStream(problem) {
  return problem?.retryAfter ? problem.retryAfter * 1000 : AGAIN_MS + Math.random() * SPREAD_MS;
}

/** Make a parser of server-sent events: give it text as it comes, it returns the events that are whole. */
export function parser() {
  let rest = "";
  let type = "";
  let data = [];
  return (text) => {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (data.length) events.push({ type: type || "message", data: data.join("\n") });
        type = "";
        data = [];
        continue;
      }
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") type = value;
      else if (field === "data") data.push(value);
    }
    return events;
  };
}

async function send(path, options) {
  const headers = { ...options.headers, Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    throw unreachable(error);
  }
  if (answer.ok || answer.status === 304) return answer;
  const problem = await problemOf(answer);
  if (problem.status === 401) signOut(problem);
  throw problem;
}

async function problemOf(answer) {
  try {
    const { title, detail, errors } = await answer.json();
    const retryAfter = Number(answer.headers.get("Retry-After"));
    return new Problem(answer.status, String(title), String(detail), errors ?? [], retryAfter);
  } catch {
    return new Problem(answer.status, `Answer ${answer.status}`, "The answer is not the API's: is a proxy in between?");
  }
}

function unreachable(error) {
  const detail =
    error.name === "TimeoutError"
      ? "The API has not answered in time. A request that changes something may have been carried out: sending it again is safe."
      : "The API cannot be reached. A request that changes something may have been carried out: sending it again is safe.";
  return new Problem(0, "No answer", detail);
}
