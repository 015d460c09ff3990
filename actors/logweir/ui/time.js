// Parsing and formatting of times, ranges, and durations. Pure: the current time is an argument.

export const UNITS = { s: 1e3, m: 60e3, h: 3600e3, d: 86400e3, w: 7 * 86400e3 };

export const PRESETS = [
  ["-5m", "Last 5 minutes"], ["-15m", "Last 15 minutes"], ["-1h", "Last hour"], ["-3h", "Last 3 hours"],
  ["-12h", "Last 12 hours"], ["-24h", "Last 24 hours"], ["-2d", "Last 2 days"], ["-7d", "Last 7 days"], ["-30d", "Last 30 days"],
];

const RELATIVE = /^(?:now)?-(\d{1,6})([smhdw])$/;

/** Parses `now`, `-15m`, `now-15m`, a number of milliseconds, or RFC 3339 into milliseconds since 1970; NaN for anything else. */
export function resolve(text, now) {
  if (text === "now") return now;
  const relative = RELATIVE.exec(text);
  if (relative) return now - relative[1] * UNITS[relative[2]];
  if (/^\d{11,14}$/.test(text)) return Number(text);
  return /^\d{4}-\d\d-\d\dT/.test(text) ? Date.parse(text) : NaN;
}

export const isRelative = (text) => text === "now" || RELATIVE.test(text);

/** Returns the label of a range. */
export function rangeLabel(start, end, zone) {
  if (end === "now") {
    const quick = PRESETS.find(([value]) => value === start);
    if (quick) return quick[1];
    const relative = RELATIVE.exec(start);
    if (relative) return `Last ${relative[1]} ${{ s: "seconds", m: "minutes", h: "hours", d: "days", w: "weeks" }[relative[2]]}`;
  }
  const side = (text) => (isRelative(text) ? text : stamp(Date.parse(text), zone));
  return `${side(start)} – ${side(end)}`;
}

export const localZone = () => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

export function zones() {
  const all = Intl.supportedValuesOf ? Intl.supportedValuesOf("timeZone") : [];
  return ["UTC", ...all.filter((zone) => zone !== "UTC")];
}

export function isZone(zone) {
  try {
    return Boolean(Intl.DateTimeFormat("en", { timeZone: zone }));
  } catch {
    return false;
  }
}

const formats = new Map();
function parts(ms, zone) {
  if (!formats.has(zone)) {
    formats.set(zone, new Intl.DateTimeFormat("en-GB", {
      timeZone: zone, hourCycle: "h23", year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
    }));
  }
  const found = {};
  for (const { type, value } of formats.get(zone).formatToParts(ms)) found[type] = value;
  return found;
}

const pad = (number, width) => String(number).padStart(width, "0");

/** Returns the UTC offset of `zone` at that instant, in milliseconds. */
function offset(ms, zone) {
  const p = parts(ms, zone);
  return Date.UTC(p.year, p.month - 1, p.day, p.hour, p.minute, p.second) - Math.floor(ms / 1000) * 1000;
}

/**
 * Converts local time such as `2026-11-20T10:15:00` in `zone` into milliseconds. An ambiguous time is the earlier instant;
 * a time skipped by a clock change uses the offset before it.
 */
export function fromZone(text, zone) {
  const p = /^(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,3}))?)?$/.exec(text);
  if (!p) return NaN;
  const wall = Date.UTC(p[1], p[2] - 1, p[3], p[4], p[5], p[6] ?? 0, (p[7] ?? "0").padEnd(3, "0"));
  const guess = wall - offset(wall - 86400e3, zone);
  if (offset(guess, zone) === wall - guess) return guess;
  const after = wall - offset(wall + 86400e3, zone);
  return offset(after, zone) === wall - after ? after : guess;
}

/** Formats as `2026-11-20T10:15:00`, the value of a datetime-local input. */
export function inZone(ms, zone) {
  const p = parts(ms, zone);
  return `${p.year}-${p.month}-${p.day}T${p.hour}:${p.minute}:${p.second}`;
}

/** Formats as `2026-11-20 10:15:00`. */
export const stamp = (ms, zone) => (Number.isFinite(ms) ? inZone(ms, zone).replace("T", " ") : "?");

/** Formats a record's time for a table row, with the date if the range spans several days. */
export function rowTime(ts, zone, withDate) {
  const ms = Date.parse(ts);
  if (!Number.isFinite(ms)) return ts;
  const p = parts(ms, zone);
  return `${withDate ? `${p.month}-${p.day} ` : ""}${p.hour}:${p.minute}:${p.second}.${pad(((ms % 1000) + 1000) % 1000, 3)}`;
}

/** Formats a record's full time with microseconds and UTC offset. */
export function fullTime(ts, zone) {
  const ms = Date.parse(ts);
  if (!Number.isFinite(ms)) return ts;
  const fraction = /\.(\d+)/.exec(ts)?.[1] ?? "";
  const minutes = offset(ms, zone) / 60e3;
  const sign = minutes < 0 ? "−" : "+";
  const off = minutes === 0 ? "UTC" : `${sign}${pad(Math.floor(Math.abs(minutes) / 60), 2)}:${pad(Math.abs(minutes) % 60, 2)}`;
  return `${stamp(ms, zone)}${fraction ? `.${fraction.padEnd(6, "0").slice(0, 6)}` : ""} ${off}`;
}

/** Formats an axis tick for a span of `span` milliseconds. */
export function tick(ms, zone, span) {
  const p = parts(ms, zone);
  if (span > 4 * UNITS.d) return `${p.month}-${p.day}`;
  if (span > UNITS.d) return `${p.month}-${p.day} ${p.hour}:${p.minute}`;
  return span > 10 * UNITS.m ? `${p.hour}:${p.minute}` : `${p.hour}:${p.minute}:${p.second}`;
}

/** Formats a duration as `2 h 5 min`. */
export function duration(ms) {
  if (!(ms >= 0)) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = Math.round(ms / 1000);
  for (const [size, name, below, small] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (s >= size) {
      const rest = Math.floor((s % size) / below);
      return rest ? `${Math.floor(s / size)} ${name} ${rest} ${small}` : `${Math.floor(s / size)} ${name}`;
    }
  }
  return `${s} s`;
}
