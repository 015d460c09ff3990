// Empty results: how to send the first record, or the time range that holds records.

import { get, hasToken, serverNow } from "./api.js";
import { copy, html, Icon, plural, useEffect, useState } from "./components.js";
import { PRESETS, resolve, stamp, UNITS } from "./time.js";

const POLL_MS = 3000;
/** Senders with a wrong clock may be ahead of the server. */
const FUTURE_MS = 3650 * UNITS.d;
const SERVICES_SHOWN = 6;
const PRESETS_OFFERED = ["-24h", "-7d", "-30d"];

/** Returns the services, and the times of the earliest and latest record; null for both without records. */
async function overview(signal) {
  const range = { start: 0, end: Math.ceil(serverNow() + FUTURE_MS) };
  const { services } = await get("services", range, signal);
  const edge = async (direction) => {
    const { records, source } = await get("query", { ...range, direction, limit: 1 }, signal);
    if (source?.partial) throw new Error(`incomplete: ${source.partial_reason}`);
    return Date.parse(records[0]?.ts ?? "");
  };
  const [first, last] = [await edge("forward"), await edge("backward")];
  return { services, first: Number.isFinite(first) ? first : null, last: Number.isFinite(last) ? last : null };
}

const contains = (state, ms) => resolve(state.start, serverNow()) <= ms && ms < resolve(state.end, serverNow());

export function EmptyState({ state, zone, onRange, onQuery, onFirstRecord }) {
  const [view, setView] = useState(null);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    const poll = async () => {
      try {
        const found = await overview(abort.signal);
        setView((before) => {
          // The first records arrived while this was on screen.
          if (before?.last === null && found.last !== null) onFirstRecord();
          return found;
        });
        if (found.last === null) timer = setTimeout(poll, POLL_MS);
        // A record that arrived after the search.
        else if (!state.query && contains(state, found.last)) timer = setTimeout(onFirstRecord, POLL_MS);
      } catch (error) {
        if (error.name !== "AbortError") timer = setTimeout(poll, POLL_MS);
      }
    };
    poll();
    return () => { abort.abort(); clearTimeout(timer); };
  }, []);

  if (view === null) return html`<div class="empty-state"><p class="muted">Loading…</p></div>`;
  if (view.last === null) return html`<${NoRecords} />`;

  const { services, first, last } = view;
  const now = serverNow();
  const [start, end] = [resolve(state.start, now), resolve(state.end, now)];
  const allOutside = last < start || first >= end;
  // Only with a query: a wider range would find nothing more.
  const allInside = Boolean(state.query) && first >= start && last < end;
  // The end is exclusive.
  const showAll = () => onRange(new Date(Math.floor(first)).toISOString(), new Date(Math.floor(last) + 1).toISOString());
  const presets = allInside ? [] : PRESETS.filter(([from]) => PRESETS_OFFERED.includes(from) && last < now + UNITS.m && last >= resolve(from, now) && resolve(from, now) < start);
  const total = services.reduce((sum, one) => sum + one.records, 0);
  const names = services.slice(0, SERVICES_SHOWN).map(({ name }) => name || "(none)").join(", ");
  return html`<div class="empty-state"><h2>${allInside ? "No matching records" : `No ${state.query ? "matching " : ""}records in this time range`}</h2>
    <p>${allOutside ? "All records are outside this range: " : "Stored: "}${total ? `${plural(total, "record")} from ${plural(services.length, "service")} (${names}${services.length > SERVICES_SHOWN ? ", …" : ""})` : "records"}<br />${stamp(first, zone)} to ${stamp(last, zone)}</p>
    <div class="actions">${!allInside && html`<button type="button" class="primary" onClick=${showAll}>${state.query ? "Search all records" : "Show all records"}</button>`}
      ${presets.map(([from, label]) => html`<button type="button" onClick=${() => onRange(from, "now")}>${label}</button>`)}
      ${state.query && html`<button type="button" onClick=${() => onQuery("")}>Clear query</button>`}</div></div>`;
}

function NoRecords() {
  const curl = `curl ${hasToken() ? "-H 'Authorization: Bearer INGEST_TOKEN' " : ""}'${location.origin}/ingest?ack=committed' --data-binary '{"level":"info","service":"hello","msg":"it works"}'`;
  return html`<div class="empty-state"><h2>No records yet</h2>
    <p>Send your first record. It appears here within seconds.</p>
    <div class="code"><code>${curl}</code><button type="button" onClick=${() => copy(curl, "Command")}><${Icon} name="copy" />Copy</button></div>
    <p class="muted">To send a file, run <code>logweir produce --url ${location.origin} app.log</code>. Fluent Bit, Vector, Promtail, OpenTelemetry, Filebeat, Splunk and Loki clients can send to this server directly.</p></div>`;
}
