// Nothing to show, and what to do about it: send the first records, or look elsewhere.

import { get, hasToken, serverNow } from "./api.js";
import { copy, html, Icon, plural, useEffect, useState } from "./view.js";
import { UNITS } from "./time.js";

const LOOK_MS = 3000;
const FAR_DAYS = 3650;

export function Empty({ state, onRange, onQuery, onFilled }) {
  const [services, setServices] = useState(null);
  const look = async (signal) => {
    const now = serverNow();
    const found = await get("services", { start: Math.floor(now - FAR_DAYS * UNITS.d), end: Math.ceil(now + UNITS.d) }, signal);
    return found.services;
  };
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    const again = async () => {
      try {
        const found = await look(abort.signal);
        setServices((before) => {
          // The first records have come while somebody was looking at the empty page.
          if (before?.length === 0 && found.length) onFilled();
          return found;
        });
        if (!found.length) timer = setTimeout(again, LOOK_MS);
      } catch (error) {
        if (error.name !== "AbortError") timer = setTimeout(again, LOOK_MS);
      }
    };
    again();
    return () => { abort.abort(); clearTimeout(timer); };
  }, []);

  if (services === null) return html`<div class="empty"><p class="soft">Looking…</p></div>`;
  if (services.length === 0) {
    const curl = `curl ${hasToken() ? "-H 'Authorization: Bearer INGEST_TOKEN' " : ""}'${location.origin}/ingest' --data-binary '{"level":"info","service":"hello","msg":"it works"}'`;
    return html`<div class="empty"><h2>No records yet</h2>
      <p>Send the first one; this page shows it as soon as it is there.</p>
      <div class="code"><code>${curl}</code><button type="button" onClick=${() => copy(curl, "Command")}><${Icon} name="copy" />Copy</button></div>
      <p class="soft">A file: <code>logweir produce app.log</code>. Fluent Bit, Vector, Promtail, OpenTelemetry, Filebeat, Splunk's and Loki's clients: point them here.</p></div>`;
  }
  const total = services.reduce((sum, one) => sum + one.records, 0);
  return html`<div class="empty"><h2>Nothing found here</h2>
    <p>${plural(total, "record")} of ${plural(services.length, "service")} in all: ${services.slice(0, 6).map(({ name }) => name || "(none)").join(", ")}${services.length > 6 ? ", …" : ""}.</p>
    <div class="acts">${[["-24h", "Last 24 hours"], ["-7d", "Last 7 days"], ["-30d", "Last 30 days"], ["-520w", "All time"]].filter(([start]) => !(state.end === "now" && state.start === start)).map(([start, label]) => html`<button type="button" onClick=${() => onRange(start, "now")}>${label}</button>`)}
      ${state.query && html`<button type="button" onClick=${() => onQuery("")}>Without the filter</button>`}</div></div>`;
}
