// The alerts that the configuration names, and how each stands.

import { get } from "./api.js";
import { count, html, Icon, useEffect, useState } from "./view.js";
import { duration, stamp } from "./time.js";
import { toAddress, zoneOf, fromAddress } from "./state.js";

const LOOK_MS = 5000;
const EXAMPLE = "[alerts.declined]\nquery = 'service:cart severity>=error'\nabove = 10\nwindow = '5m'";
const RANK = { firing: 0, pending: 1, inactive: 2 };
/** Of a gateway, each processor has its own of each name. */
const key = ({ name, processor }) => `${name} ${processor ?? ""}`;
const number = (value) => (typeof value === "number" ? (Number.isInteger(value) ? count(value) : value.toPrecision(3)) : "–");

export function Alerts({ state, go, onFailure }) {
  const [alerts, setAlerts] = useState(null);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    const look = async () => {
      try {
        const found = await get("alerts", {}, abort.signal);
        setAlerts(found.alerts);
        onFailure(null);
      } catch (error) {
        if (error.name === "AbortError") return;
        onFailure(error);
      }
      timer = setTimeout(look, LOOK_MS);
    };
    look();
    return () => { abort.abort(); clearTimeout(timer); };
  }, []);
  const zone = zoneOf(state);
  const time = (value) => (value ? stamp(typeof value === "number" ? value : Date.parse(value), zone) : "–");
  const target = (alert) => toAddress({ ...fromAddress("/", ""), query: alert.query, zone: state.zone });
  const sorted = [...(alerts ?? [])].sort((a, b) => RANK[a.state] - RANK[b.state] || key(a).localeCompare(key(b)));
  return html`<main class="alerts"><h1 class="hidden">Alerts</h1>
    ${!alerts && html`<p class="soft">Looking…</p>`}
    ${alerts?.length === 0 && html`<div class="empty"><h2>No alerts</h2><p>They are named in the configuration, each with a query, a window and a threshold:</p>
      <div class="code"><pre>${EXAMPLE}</pre></div></div>`}
    ${sorted.length > 0 && html`<ul class="alert-list">${sorted.map((alert) => html`<li key=${key(alert)} class="alert-card ${alert.state}">
      <header><span class="dot ${{ firing: "bad", pending: "warn" }[alert.state] ?? "good"}"></span><h2>${alert.name}</h2><span class="chip">${alert.state}</span>${alert.processor && html`<span class="soft">${alert.processor}</span>`}${alert.since && html`<span class="soft">since ${time(alert.since)}</span>`}</header>
      <a href=${target(alert)} onClick=${(event) => { if (!event.metaKey && !event.ctrlKey) { event.preventDefault(); go({ view: "logs", query: alert.query, start: "-1h", end: "now", live: false }); } }}><code>${alert.query || "every record"}</code></a>
      ${alert.of && html`<p class="soft">of <code>${alert.of}</code></p>`}
      <dl class="numbers"><div><dt>${alert.measure} now</dt><dd>${number(alert.value)}</dd></div><div><dt>fires ${alert.condition}</dt><dd>${number(alert.threshold)}</dd></div><div><dt>window</dt><dd>${duration(alert.window_ms)}</dd></div>${alert.for_ms > 0 && html`<div><dt>for</dt><dd>${duration(alert.for_ms)}</dd></div>`}<div><dt>last told</dt><dd>${time(alert.last_notified)}</dd></div></dl>
      ${alert.last_error && html`<p class="problem"><${Icon} name="alert" />The webhook: ${alert.last_error}</p>`}
    </li>`)}</ul>`}
  </main>`;
}
