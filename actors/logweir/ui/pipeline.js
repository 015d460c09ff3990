// Pipeline view: throughput, queues, and bottlenecks of each stage. One card per processor.

import { get } from "./api.js";
import { bytes, count, html, Icon, plural, short, useEffect, useRef, useState } from "./components.js";
import { duration } from "./time.js";
import { zoneOf } from "./state.js";
import { DeadLetters } from "./dead-letters.js";

const POLL_MS = 2000;
/** A backlog older than this is being replayed from the journal. */
const BEHIND_MS = 3000;
const STAGES = [["producer", "Admission"], ["parser", "Parser"], ["batcher", "Batcher"], ["db-flusher", "Flusher"], ["cache-writer", "Cache writer"]];

/** Returns the change between two polls, per second; null if unknown. */
const perSecond = (now, before, seconds) => (before === undefined || now < before || !(seconds > 0) ? null : (now - before) / seconds);

/** Sums up each stage's actors, of which there is one per lane. */
export function stages(actors) {
  return STAGES.map(([prefix, title]) => {
    const mine = actors.filter(({ name }) => name === prefix || name.startsWith(`${prefix}-`));
    const sum = (read) => mine.reduce((total, actor) => total + read(actor), 0);
    return {
      prefix, title, actors: mine,
      entered: sum((a) => a.entered), handled: sum((a) => a.handled), dropped: sum((a) => a.discarded), rejected: sum((a) => a.rejected),
      depth: sum((a) => a.depth_messages), depthMax: sum((a) => a.bound.messages_max), depthBytes: sum((a) => a.depth_bytes), bytesMax: sum((a) => a.bound.bytes_max),
      wait: sum((a) => a.wait_seconds), busy: sum((a) => a.busy_seconds), restarts: sum((a) => a.restarts),
      panic: mine.find((a) => a.last_panic)?.last_panic ?? null,
    };
  }).filter(({ actors }) => actors.length);
}

export function totals(lanes) {
  const sum = (name) => lanes.reduce((total, lane) => total + lane[name], 0);
  const all = { accepted: sum("accepted"), committed: sum("committed"), dead_lettered: sum("dead_lettered"), lost: sum("lost"), backlog: sum("backlog") };
  return { ...all, balanced: all.accepted === all.committed + all.dead_lettered + all.lost + all.backlog };
}

const Meter = ({ label, value, most, text, low = 0.75 }) => {
  const share = most > 0 ? Math.min(1, value / most) : 0;
  return html`<div class="meter ${share >= 0.95 ? "full" : share >= low ? "high" : ""}" role="meter" aria-label=${label} aria-valuemin="0" aria-valuemax=${most || 1} aria-valuenow=${Math.min(value, most || 1)} aria-valuetext=${text}>
    <span class="meter-bar"><span style=${{ width: `${share * 100}%` }}></span></span><span class="meter-text">${text}</span></div>`;
};

const rate = (value) => (value === null ? "–" : `${short(Math.round(value * 10) / 10)}/s`);

function Stage({ stage, before, seconds }) {
  const enters = perSecond(stage.entered, before?.entered, seconds);
  const leaves = perSecond(stage.handled, before?.handled, seconds);
  const waits = perSecond(stage.wait, before?.wait, seconds);
  const busy = perSecond(stage.busy, before?.busy, seconds);
  const faulty = stage.dropped > 0 || stage.restarts > 0;
  return html`<li class="stage ${stage.prefix} ${faulty ? "faulty" : ""}">
    <h3>${stage.title}<span class="muted"> ×${stage.actors.length}${stage.prefix === "cache-writer" ? ", parallel to the flusher" : ""}</span></h3>
    <dl class="numbers">
      <div><dt>in</dt><dd>${rate(enters)}</dd></div><div><dt>out</dt><dd>${rate(leaves)}</dd></div>
      <div class=${stage.dropped ? "problem" : ""}><dt>dropped</dt><dd>${count(stage.dropped)}</dd></div>
      <div title="Messages that arrived while the mailbox was full and were returned to the sender"><dt>rejected</dt><dd>${count(stage.rejected)}</dd></div>
      <div title="Time that senders spend waiting for mailbox space, in milliseconds per second over all senders"><dt>wait</dt><dd>${waits === null ? "–" : `${(waits * 1000).toFixed(0)} ms/s`}</dd></div>
      <div><dt>busy</dt><dd>${busy === null ? "–" : `${Math.round((busy / stage.actors.length) * 100)}%`}</dd></div>
      ${stage.restarts > 0 && html`<div class="problem"><dt>restarts</dt><dd>${count(stage.restarts)}</dd></div>`}
    </dl>
    <${Meter} label=${`${stage.title} mailbox`} value=${stage.depth} most=${stage.depthMax} text=${`${count(stage.depth)} of ${count(stage.depthMax)} messages, ${bytes(stage.depthBytes)}`} />
    ${stage.panic && html`<p class="problem"><${Icon} name="alert" />${stage.panic}</p>`}
  </li>`;
}

/** Progress of the replay, measured from the largest backlog seen since it began. */
function Replay({ lanes, sums, before, seconds }) {
  const most = useRef(0);
  const behind = sums.backlog > 0 && Math.max(...lanes.map((lane) => lane.backlog_age_ms)) >= BEHIND_MS;
  most.current = behind ? Math.max(most.current, sums.backlog) : 0;
  if (!behind) return null;
  const closing = perSecond(before?.backlog ?? 0, sums.backlog, seconds);
  const left = closing > 0 ? `, about ${duration((sums.backlog / closing) * 1000)} left` : "";
  return html`<div class="replay"><h3>Catching up with the journal backlog</h3>
    <${Meter} label="Replay" value=${most.current - sums.backlog} most=${most.current} low=${2} text=${`${plural(sums.backlog, "record")} remaining${left}`} /></div>`;
}

function Processor({ processor, before, seconds }) {
  const { status } = processor;
  if (!status) return html`<section class="processor" aria-label=${processor.name}><header><span class="dot bad"></span><h2>${processor.name}</h2><span class="muted">${processor.address}</span></header><p class="problem"><${Icon} name="alert" />${processor.error ?? "unreachable"}</p></section>`;
  const { journal, lanes, recovery, breakers, phase, maintenance_failing: failing } = status;
  const sums = totals(lanes);
  const old = new Map(stages(before?.actors ?? []).map((stage) => [stage.prefix, stage]));
  const oldSums = before && totals(before.lanes);
  const state = (lane) => (typeof lane.store === "string" ? { state: lane.store } : lane.store);
  return html`<section class="processor" aria-label=${status.instance}>
    <header><span class="dot ${processor.ok ? "good" : "bad"}"></span><h2>${status.instance}</h2>
      <span class="chip">${phase}</span><span class="muted">uptime ${duration(status.uptime_s * 1000)}</span><span class="muted">version ${status.version}</span>
      <span class="muted">${status.store} · ${status.cache}</span>${processor.address && html`<span class="muted">${processor.address}</span>`}</header>
    ${!processor.ok && html`<p class="problem"><${Icon} name="alert" />${processor.error ?? "Unreachable. Showing its last known status."}</p>`}
    ${recovery && !recovery.finished && html`<div class="replay"><h3>Replaying the journal</h3><${Meter} label="Replay" value=${recovery.bytes_read} most=${recovery.bytes} low=${2} text=${`${bytes(recovery.bytes_read)} of ${bytes(recovery.bytes)}`} /></div>`}
    <${Replay} lanes=${lanes} sums=${sums} before=${oldSums} seconds=${seconds} />
    <dl class="totals">
      ${[["accepted", "Accepted"], ["committed", "Committed"], ["backlog", "Backlog"], ["dead_lettered", "Dead-lettered"], ["lost", "Lost to damage"]].map(([name, title]) => html`<div class=${name === "lost" && sums.lost ? "problem" : ""}><dt>${title}</dt><dd>${count(sums[name])}</dd>
        <dd class="muted">${["accepted", "committed"].includes(name) && oldSums ? rate(perSecond(sums[name], oldSums[name], seconds)) : " "}</dd></div>`)}
      <div class=${sums.balanced ? "good" : "problem"}><dt>Accounting</dt><dd><${Icon} name=${sums.balanced ? "check" : "alert"} /></dd><dd class="muted">${sums.balanced ? "balanced" : "mismatch: run logweir verify"}</dd></div>
    </dl>
    <ol class="stages" aria-label="Stages in pipeline order">${stages(status.actors).map((stage) => html`<${Stage} key=${stage.prefix} stage=${stage} before=${old.get(stage.prefix)} seconds=${seconds} />`)}</ol>
    <div class="columns">
      ${journal && html`<section><h3>Journal</h3><${Meter} label="Journal" value=${journal.bytes} most=${journal.quota_bytes} text=${`${bytes(journal.bytes)} of ${bytes(journal.quota_bytes)}`} />
        <dl class="numbers"><div><dt>segments</dt><dd>${count(journal.segments)}</dd></div><div><dt>awaiting fsync</dt><dd>${count(journal.seq_last - journal.seq_durable)} frames</dd></div>
          <div><dt>backlog</dt><dd>${plural(sums.backlog, "record")}</dd></div>
          <div><dt>oldest record</dt><dd class="age">${sums.backlog ? duration(Math.max(...lanes.map((lane) => lane.backlog_age_ms))) : "–"}</dd></div>
          <div class=${journal.damaged_frames ? "problem" : ""}><dt>damaged frames</dt><dd>${count(journal.damaged_frames)}</dd></div>
          ${journal.quarantine_bytes > 0 && html`<div class="problem"><dt>quarantined</dt><dd>${bytes(journal.quarantine_bytes)}</dd></div>`}</dl>
        ${journal.reject_reason && html`<p class="problem"><${Icon} name="alert" />Not accepting records: ${journal.reject_reason}</p>`}</section>`}
      <section><h3>Circuit breakers</h3><ul class="breakers">${Object.entries(breakers ?? {}).map(([name, breaker]) => html`<li><span class="dot ${breaker === "closed" ? "good" : breaker === "open" ? "bad" : "warn"}"></span>${name}<span class="muted">${{ closed: "closed", half_open: "half-open: one trial call in flight", open: "open: no calls are made" }[breaker] ?? breaker}</span></li>`)}
        ${!Object.keys(breakers ?? {}).length && html`<li class="muted">No calls yet</li>`}</ul></section>
      ${failing?.length > 0 && html`<section><h3>Database maintenance</h3><ul class="breakers">${failing.map(({ step, error }) => html`<li><span class="dot warn"></span>${step}<span class="muted">${error}</span></li>`)}</ul></section>`}
    </div>
    <div class="scroll" tabindex="0" role="group" aria-label="Lanes"><table><caption>Lanes</caption><thead><tr>${["Lane", "Database", "Frames behind", "Backlog", "Oldest record", "Accepted", "Committed", "Dead-lettered", "Lost"].map((title, nth) => html`<th scope="col" class=${nth > 1 ? "number" : ""}>${title}</th>`)}</tr></thead>
      <tbody>${lanes.map((lane) => html`<tr><th scope="row">${lane.lane}</th><td><span class="dot ${{ ok: "good", connecting: "warn" }[state(lane).state] ?? "bad"}"></span>${state(lane).state}${state(lane).reason ? `: ${state(lane).reason}` : ""}</td>
        <td class="number">${count(lane.seq_last - lane.seq_committed)}</td><td class="number">${count(lane.backlog)}</td><td class="number">${lane.backlog ? duration(lane.backlog_age_ms) : "–"}</td><td class="number">${count(lane.accepted)}</td><td class="number">${count(lane.committed)}</td><td class="number">${count(lane.dead_lettered)}</td><td class="number">${count(lane.lost)}</td></tr>`)}</tbody></table></div>
  </section>`;
}

export function Pipeline({ state, onFailure }) {
  const [view, setView] = useState(null);
  const last = useRef(null);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    const poll = async () => {
      try {
        const { processors } = await get("pipeline", {}, abort.signal);
        const at = performance.now();
        const before = last.current;
        last.current = { at, statuses: new Map(processors.map((one) => [one.name, one.status])) };
        setView({ processors, before: before?.statuses, seconds: before ? (at - before.at) / 1000 : 0 });
        onFailure(null);
      } catch (error) {
        if (error.name === "AbortError") return;
        onFailure(error);
      }
      timer = setTimeout(poll, document.hidden ? POLL_MS * 5 : POLL_MS);
    };
    poll();
    return () => { abort.abort(); clearTimeout(timer); };
  }, []);
  const dead = view?.processors.reduce((sum, { status }) => sum + (status ? totals(status.lanes).dead_lettered : 0), 0) ?? 0;
  return html`<main class="pipeline">
    <h1 class="hidden">Pipeline</h1>
    ${!view && html`<p class="muted">Loading…</p>`}
    ${view?.processors.length === 0 && html`<div class="empty-state"><h2>No processors</h2><p>The names in <code>gateway.processors</code> do not resolve to any address.</p></div>`}
    ${view?.processors.map((processor) => html`<${Processor} key=${processor.name} processor=${processor} before=${view.before?.get(processor.name)} seconds=${view.seconds} />`)}
    ${view && html`<${DeadLetters} total=${dead} zone=${zoneOf(state)} onFailure=${onFailure} />`}
  </main>`;
}
