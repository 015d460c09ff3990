// HTTP client for the query API: JSON, downloads, and server-sent events. Every failure has a kind, so that the UI can suggest a remedy.

const session = () => {
  try {
    return sessionStorage;
  } catch {
    return { getItem: () => null, setItem() {}, removeItem() {} };
  }
};
const KEY = "logweir.token";
const stored = () => {
  try {
    return session().getItem(KEY) ?? localStorage.getItem(KEY);
  } catch {
    return null;
  }
};
/** A live server sends an event or a comment every ten seconds; after this long a silence the connection counts as lost. */
const SILENCE_MAX_MS = 30e3;
let token = stored();
let skew = 0;

export const hasToken = () => Boolean(token);

/** Stores the token for this tab or, with `keep`, for this browser. */
export function setToken(value, persist) {
  token = value || null;
  session().removeItem(KEY);
  try {
    localStorage.removeItem(KEY);
    if (token) (persist ? localStorage : session()).setItem(KEY, token);
  } catch { /* without storage the token lasts until the document is unloaded */ }
}

/** Current time on the server's clock, which stamps records that carry no timestamp. */
export const serverNow = () => Date.now() + skew;

/** A failed request. `kind`: unreachable, token, forbidden, query, busy, timeout, unavailable, missing, or other. */
export class Failure extends Error {
  constructor(kind, detail, { status = 0, reason = "", column = null, retryAfter = null } = {}) {
    super(detail);
    Object.assign(this, { kind, status, reason, column, retryAfter });
  }
}

/** Short reason why counts are missing; the error banner shows the failure itself. */
export const countsError = (error) => (error.reason === "database_unavailable" ? "Counts are unavailable while the database is down." : error.reason === "database_unprepared" ? "Counts are unavailable while the database is not prepared." : error.message);

const KINDS = { 400: "query", 401: "token", 403: "forbidden", 404: "missing", 429: "busy", 502: "unreachable", 503: "unavailable", 504: "timeout" };

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const detail = typeof body.detail === "string" ? body.detail : `the server returned HTTP ${response.status}`;
  return new Failure(KINDS[response.status] ?? "other", detail, {
    status: response.status,
    reason: String(body.error ?? ""),
    column: Number.isInteger(body.column) ? body.column : null,
    retryAfter: Number(response.headers.get("retry-after")) || null,
  });
}

export const apiUrl = (path, parameters = {}) => {
  const encoded = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== undefined && value !== null && value !== "") encoded.set(name, value);
  return `/api/v1/${path}${encoded.size ? `?${encoded}` : ""}`;
};

async function request(path, parameters, { signal, method = "GET", headers = {} } = {}) {
  const sent = Date.now();
  let response;
  try {
    response = await fetch(apiUrl(path, parameters), {
      method, signal, cache: "no-store", credentials: "same-origin", redirect: "error",
      headers: { ...headers, ...(token ? { authorization: `Bearer ${token}` } : {}) },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("unreachable", "the server is unreachable");
  }
  // The server answered at some moment between sending and now, and `Date` has whole seconds: a difference within that is no skew.
  const serverTime = Date.parse(response.headers.get("date"));
  const [ahead, behind] = [serverTime - Date.now(), serverTime + 1000 - sent];
  if (Number.isFinite(serverTime)) skew = ahead > 1000 ? ahead : behind < -1000 ? behind : 0;
  if (!response.ok) throw await failure(response);
  return response;
}

/** Fetches JSON. */
export async function get(path, parameters, signal) {
  const response = await request(path, parameters, { signal });
  return body(response, (response) => response.json());
}

export async function post(path, parameters) {
  const response = await request(path, parameters, { method: "POST" });
  return response.json().catch(() => ({}));
}

/** Fetches a response as a Blob. Also returns what it lacks, or null. */
export async function download(path, parameters, signal) {
  const response = await request(path, parameters, { signal });
  return { file: await body(response, (response) => response.blob()), partial: response.headers.get("x-logweir-partial") };
}

async function body(response, read) {
  try {
    return await read(response);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("unreachable", "the response was interrupted");
  }
}

/**
 * Receives server-sent events until the connection ends or `signal` aborts; calls `onEvent(event, data, id)`.
 * The browser's EventSource cannot send an Authorization header.
 */
export async function events(path, parameters, { signal, lastEventId, onOpen, onEvent }) {
  const headers = { accept: "text/event-stream", ...(lastEventId ? { "last-event-id": lastEventId } : {}) };
  const response = await request(path, parameters, { signal, headers });
  onOpen();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const line = eventReader(onEvent);
  let rest = "";
  for (;;) {
    const { done, value } = await readWithTimeout(reader);
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n/);
    rest = lines.pop();
    lines.forEach(line);
  }
}

/** Reads the next chunk; fails when the connection is silent for too long. */
async function readWithTimeout(reader) {
  let timer = 0;
  const silence = new Promise((_, reject) => { timer = setTimeout(() => reject(new Failure("unreachable", "the connection timed out")), SILENCE_MAX_MS); });
  try {
    return await Promise.race([reader.read(), silence]);
  } catch (error) {
    reader.cancel().catch(() => {}); // the connection is lost either way
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/** Returns a function that assembles events from lines. */
function eventReader(onEvent) {
  let [event, data, id] = ["", [], ""];
  return (line) => {
    if (line === "") {
      // An id without data only moves the resume position.
      if (data.length || id) onEvent(data.length ? event || "message" : "", data.join("\n"), id);
      [event, data] = ["", []];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment keeps the connection alive
    const [name, raw] = colon < 0 ? [line, ""] : [line.slice(0, colon), line.slice(colon + 1)];
    const value = raw.startsWith(" ") ? raw.slice(1) : raw;
    if (name === "data") data.push(value);
    else if (name === "event") event = value;
    else if (name === "id") id = value;
  };
}
