// The way to the server: JSON, and records as they come. Every failure has a kind, so that the page can say what to do.

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
/** The server says something each ten seconds where it is live: after so long a silence, nobody is there. */
const SILENCE_MS = 30e3;
let token = stored();
let skew = 0;

export const hasToken = () => Boolean(token);

/** Keeps the token for this tab, or for this browser. */
export function setToken(value, keep) {
  token = value || null;
  session().removeItem(KEY);
  try {
    localStorage.removeItem(KEY);
    if (token) (keep ? localStorage : session()).setItem(KEY, token);
  } catch { /* without storage it is kept until the page is closed */ }
}

/** Now by the server's clock, which is the one that gave the records their times. */
export const serverNow = () => Date.now() + skew;

/** `kind`: away, token, forbidden, query, busy, timeout, unavailable, missing or other. */
export class Failure extends Error {
  constructor(kind, detail, { status = 0, reason = "", column = null, retryAfter = null } = {}) {
    super(detail);
    Object.assign(this, { kind, status, reason, column, retryAfter });
  }
}

/** Why something is not counted, in few words: what is wrong as a whole stands elsewhere. */
export const uncounted = (error) => (error.reason === "database_unavailable" ? "Not counted while the database is away." : error.message);

const KINDS = { 400: "query", 401: "token", 403: "forbidden", 404: "missing", 429: "busy", 502: "away", 503: "unavailable", 504: "timeout" };

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const detail = typeof body.detail === "string" ? body.detail : `the server answered ${response.status}`;
  return new Failure(KINDS[response.status] ?? "other", detail, {
    status: response.status,
    reason: String(body.error ?? ""),
    column: Number.isInteger(body.column) ? body.column : null,
    retryAfter: Number(response.headers.get("retry-after")) || null,
  });
}

export const address = (path, parameters = {}) => {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== undefined && value !== null && value !== "") given.set(name, value);
  return `/api/v1/${path}${given.size ? `?${given}` : ""}`;
};

async function request(path, parameters, { signal, method = "GET", headers = {} } = {}) {
  const sent = Date.now();
  let response;
  try {
    response = await fetch(address(path, parameters), {
      method, signal, cache: "no-store", credentials: "same-origin", redirect: "error",
      headers: { ...headers, ...(token ? { authorization: `Bearer ${token}` } : {}) },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("away", "the server does not answer");
  }
  // It was answered somewhere between sending and now, and `Date` has whole seconds: what fits in there is no difference.
  const theirs = Date.parse(response.headers.get("date"));
  const [ahead, behind] = [theirs - Date.now(), theirs + 1000 - sent];
  if (Number.isFinite(theirs)) skew = ahead > 1000 ? ahead : behind < -1000 ? behind : 0;
  if (!response.ok) throw await failure(response);
  return response;
}

/** A JSON answer. */
export async function get(path, parameters, signal) {
  const response = await request(path, parameters, { signal });
  return body(response, (response) => response.json());
}

export async function post(path, parameters) {
  const response = await request(path, parameters, { method: "POST" });
  return response.json().catch(() => ({}));
}

/** An answer as a file. */
export async function download(path, parameters, signal) {
  const response = await request(path, parameters, { signal });
  return body(response, (response) => response.blob());
}

async function body(response, read) {
  try {
    return await read(response);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("away", "the server's answer broke off");
  }
}

/**
 * Server-sent events until the connection ends or `signal` says so: `onEvent(event, data, id)`.
 * The browser's own EventSource cannot carry a token.
 */
export async function events(path, parameters, { signal, lastEventId, onOpen, onEvent }) {
  const headers = { accept: "text/event-stream", ...(lastEventId ? { "last-event-id": lastEventId } : {}) };
  const response = await request(path, parameters, { signal, headers });
  onOpen();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const line = eventReader(onEvent);
  let rest = "";
  for (;;) {
    const { done, value } = await inTime(reader);
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n/);
    rest = lines.pop();
    lines.forEach(line);
  }
}

/** What is read next; a connection that is silent for too long is given up. */
async function inTime(reader) {
  let timer = 0;
  const silence = new Promise((_, reject) => { timer = setTimeout(() => reject(new Failure("away", "the server is silent")), SILENCE_MS); });
  try {
    return await Promise.race([reader.read(), silence]);
  } catch (error) {
    reader.cancel().catch(() => {}); // it is lost in any case
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/** Puts events together from lines. */
function eventReader(onEvent) {
  let [event, data, id] = ["", [], ""];
  return (line) => {
    if (line === "") {
      // An id without data only says from where to go on.
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
