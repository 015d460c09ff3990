// What is looked at: kept in the address, so that a link shows the same to somebody else.

import { isZone, localZone, resolve } from "./time.js";

const DEFAULTS = { view: "logs", query: "", start: "-1h", end: "now", zone: "", by: "severity", columns: [], facets: [], live: false, record: "" };
const VIEWS = { "/": "logs", "/pipeline": "pipeline", "/alerts": "alerts" };
const LISTS = ["columns", "facets"];
const LIST_MAX = 20;

/** The state that an address stands for; what it says wrongly is as if it were not said. */
export function fromAddress(path, search) {
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

/** The address of a state: only what differs from the usual. */
export function toAddress(state) {
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

/** What this browser remembers beside the address. */
export const remembered = {
  get: (name, fallback) => {
    try {
      return localStorage.getItem(`logweir.${name}`) ?? fallback;
    } catch {
      return fallback; // storage is switched off: then nothing is remembered
    }
  },
  set: (name, value) => {
    try {
      if (value === null) localStorage.removeItem(`logweir.${name}`);
      else localStorage.setItem(`logweir.${name}`, value);
    } catch { /* as above */ }
  },
};
