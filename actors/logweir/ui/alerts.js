// Alerts view: the configured alerts and their state.

import { get } from "./api.js";
import { count, html, Icon, useEffect, useState } from "./components.js";
import { duration, stamp } from "./time.js";
import { toUrl, zoneOf, fromUrl } from "./state.js";

const POLL_MS = 5000;
const EXAMPLE = "[alerts.declined]\nquery = 'service:cart severity>=error'\nabove = 10\nwindow = '5m'";
const RANK = { firing: 0, pending: 1, inactive: 2 };
/** Behind a gateway, each processor evaluates its own alert of the same name. */
const key = ({ name, processor }) => `${name} ${processor ?? ""}`;
const number = (value) => (typeof value === "number" ? (Number.isInteger(value) ? count(value) : value.toPrecision(3)) : "–");

export function Alerts({ state, navigate, onFailure }) {
  const [alerts, setAlerts] = useState(null);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    const poll = async () => {
      try {
        const found = await get("alerts", {}, abort.signal);
        setAlerts(found.alerts);
        onFailure(null);
      } catch (error) {
        if (error.name === "AbortError") return;
        onFailure(error);
      }
      timer = setTimeout(poll, POLL_MS);
    };
    poll();
    return () => { abort.abort(); clearTimeout(timer); };
  }, []);
  const zone = zoneOf(state);
  const time = (value) => (value ? stamp(typeof value === "number" ? value : Date.parse(value), zone) : "–");
  const target = (alert) => toUrl({ ...fromUrl("/", ""), query: alert.query, zone: state.zone });
  const sorted = [...(alerts ?? [])].sort((a, b) => RANK[a.state] - RANK[b.state] || key(a).localeCompare(key(b)));
  return html`<main class="alerts"><h1 class="hidden">Alerts</h1>
    ${!alerts && html`<p class="muted">Loading…</p>`}
    ${alerts?.length === 0 && html`<div class="empty-state"><h2>No alerts configured</h2><p>Define an alert in the configuration file with a query, a window and a threshold:</p>
      <div class="code"><pre>${EXAMPLE}</pre></div></div>`}
    ${sorted.length > 0 && html`<ul class="alert-list">${sorted.map((alert) => html`<li key=${key(alert)} class="alert-card ${alert.state}">
      <header><span class="dot ${{ firing: "bad", pending: "warn" }[alert.state] ?? "good"}"></span><h2>${alert.name}</h2><span class="chip">${alert.state}</span>${alert.processor && html`<span class="muted">${alert.processor}</span>`}${alert.since && html`<span class="muted">since ${time(alert.since)}</span>`}</header>
      <a href=${target(alert)} onClick=${(event) => { if (!event.metaKey && !event.ctrlKey) { event.preventDefault(); navigate({ view: "logs", query: alert.query, start: "-1h", end: "now", live: false }); } }}><code>${alert.query || "all records"}</code></a>
      ${alert.of && html`<p class="muted">relative to <code>${alert.of}</code></p>`}
      <dl class="numbers"><div><dt>current ${alert.measure}</dt><dd>${number(alert.value)}</dd></div><div><dt>fires ${alert.condition}</dt><dd>${number(alert.threshold)}</dd></div><div><dt>window</dt><dd>${duration(alert.window_ms)}</dd></div>${alert.for_ms > 0 && html`<div><dt>sustained for</dt><dd>${duration(alert.for_ms)}</dd></div>`}<div><dt>last notified</dt><dd>${alert.last_notified ? time(alert.last_notified) : "never"}</dd></div></dl>
      ${alert.last_error && html`<p class="problem"><${Icon} name="alert" />Webhook failed: ${alert.last_error}</p>`}
    </li>`)}</ul>`}
  </main>`;
}
