// View state. It lives entirely in the URL, so that a link reproduces the view.

import { isZone, localZone, resolve } from "./time.js";

const DEFAULTS = { view: "logs", query: "", start: "-1h", end: "now", zone: "", by: "severity", columns: [], facets: [], live: false, record: "" };
const VIEWS = { "/": "logs", "/pipeline": "pipeline", "/alerts": "alerts" };
const LISTS = ["columns", "facets"];
const LIST_MAX = 20;

/** Returns the state encoded in a URL. Invalid parameters fall back to their defaults. */
export function fromUrl(path, search) {
  const given = new URLSearchParams(search);
  const state = { ...DEFAULTS, view: VIEWS[path] ?? "logs" };
  for (const name of ["query", "record"]) state[name] = given.get(name) ?? "";
  const [start, end] = [given.get("start") ?? DEFAULTS.start, given.get("end") ?? DEFAULTS.end];
  const now = Date.now();
  if (resolve(start, now) < resolve(end, now)) Object.assign(state, { start, end });
  if (isZone(given.get("zone") || "UTC")) state.zone = given.get("zone") ?? "";
  if (given.get("by") === "service") state.by = "service";
  for (const name of LISTS) state[name] = [...new Set(given.getAll(name).filter(Boolean))].slice(0, LIST_MAX);
  state.live = given.get("live") === "1";
  return state;
}

/** Returns the URL of a state. It holds only values that differ from the defaults. */
export function toUrl(state) {
  const given = new URLSearchParams();
  for (const name of ["query", "start", "end", "zone", "by", "record"]) {
    if (state[name] !== DEFAULTS[name]) given.set(name, state[name]);
  }
  for (const name of LISTS) for (const item of state[name]) given.append(name, item);
  if (state.live) given.set("live", "1");
  const path = Object.keys(VIEWS).find((path) => VIEWS[path] === state.view);
  return given.size ? `${path}?${given}` : path;
}

export const zoneOf = (state) => state.zone || localZone();

/** Preferences stored in this browser. */
export const preferences = {
  get: (name, fallback) => {
    try {
      return localStorage.getItem(`logweir.${name}`) ?? fallback;
    } catch {
      return fallback; // storage is disabled: preferences are not kept
    }
  },
  set: (name, value) => {
    try {
      if (value === null) localStorage.removeItem(`logweir.${name}`);
      else localStorage.setItem(`logweir.${name}`, value);
    } catch { /* as above */ }
  },
};
