// The explorer: one query, one range; counts above, values beside, records below.

import { serverNow } from "./api.js";
import { resolve, UNITS } from "./time.js";
import { toAddress, zoneOf } from "./state.js";
import { and, has, marks, term, without, words } from "./terms.js";
import { copy, count, html, Icon, IconButton, openMenu, plural, useCallback, useEffect, useLatest, useMedia, useMemo, useRef, useState } from "./view.js";
import { RECORDS_MAX, useSearch } from "./search.js";
import { useTail } from "./tail.js";
import { Context } from "./context.js";
import { Detail } from "./record.js";
import { Empty } from "./empty.js";
import { Export } from "./export.js";
import { Facets } from "./facets.js";
import { Histogram } from "./histogram.js";
import { Picker } from "./picker.js";
import { Table } from "./table.js";

const RETRY_MS = 3000;
const SEVERITY_NAMES = /^(?:TRACE|DEBUG|INFO|WARN|ERROR|FATAL)/;

export function Explorer({ state, go, onFailure, shortcuts }) {
  const [run, setRun] = useState(0);
  const [typed, setTyped] = useState(state.query);
  const [open, setOpen] = useState(() => new Set());
  const [selected, setSelected] = useState(null);
  const [picking, setPicking] = useState(false);
  const [exporting, setExporting] = useState(false);
  const wide = useMedia("(min-width: 1000px)");
  const [side, setSide] = useState(wide);
  const input = useRef();
  const zone = zoneOf(state);
  const search = useSearch(state, run);
  const [tail, act] = useTail(state.query, state.live);
  const live = state.live;
  const records = live ? tail.records : search.records ?? [];
  const error = live ? tail.error : search.error;
  const found = useMemo(() => marks(state.query), [state.query]);

  useEffect(() => setTyped(state.query), [state.query]);
  useEffect(() => { setOpen(new Set()); setSelected(null); }, [state.query, state.start, state.end, live]);
  // What a live tail lacks stands beside it; only a token is asked for.
  useEffect(() => onFailure(live && error?.kind !== "token" ? null : error), [error, live]);
  // A server that is away, or too busy, is asked again; so is one whose database is away.
  useEffect(() => {
    const again = !live && (error ? ["away", "busy", "unavailable"].includes(error.kind) : search.source?.partial);
    const timer = again && setTimeout(() => setRun((run) => run + 1), (error?.retryAfter ?? 0) * 1000 || RETRY_MS);
    return () => clearTimeout(timer);
  }, [error, live, search.source]);

  const again = () => setRun((run) => run + 1);
  const submit = (query) => (query.trim() === state.query ? again() : go({ query: query.trim() }));
  const toggleTerm = (one) => go({ query: has(state.query, one) ? without(state.query, one) : and(state.query, one) });
  const include = (name, value, isAttribute) => toggleTerm(term(name, value, isAttribute));
  const exclude = (name, value, isAttribute) => toggleTerm(`-${term(name, value, isAttribute)}`);
  const toggled = (list, name) => (list.includes(name) ? list.filter((known) => known !== name) : [...list, name].slice(-20));
  const onColumn = (name) => go({ columns: toggled(state.columns, name) }, true);
  const onFacet = (name) => go({ facets: toggled(state.facets, name) }, true);
  const onRange = (start, end) => go({ start, end, live: false });
  const onZoom = (start, end) => onRange(new Date(start).toISOString(), new Date(end).toISOString());
  const onZoomOut = () => {
    const [start, end] = [resolve(state.start, serverNow()), resolve(state.end, serverNow())];
    const span = end - start;
    // Of the future there is nothing to see.
    const to = Math.min(end + span, Math.max(end, serverNow()));
    onZoom(Math.max(0, to - span * 3), to);
  };
  const shift = (by) => {
    const [start, end] = [resolve(state.start, serverNow()), resolve(state.end, serverNow())];
    onZoom(start + by * (end - start), end + by * (end - start));
  };
  const onToggle = useCallback((id) => setOpen((open) => {
    const next = new Set(open);
    if (!next.delete(id)) next.add(id);
    return next;
  }), []);
  const setLive = (live) => go({ live, ...(live ? { record: "" } : {}) });

  /** The same, with a range that stands still, for somebody who opens it tomorrow. */
  const linkTo = (patch = {}) => {
    const fixed = (text) => new Date(resolve(text, serverNow())).toISOString();
    return location.origin + toAddress({ ...state, ...(live ? {} : { start: fixed(state.start), end: fixed(state.end) }), zone: state.zone, ...patch });
  };
  const recordKey = (record) => `${record.id}~${record.ts}`;

  const valueMenu = (event, name, value, isAttribute) => openMenu(event, `${name} = ${value.length > 60 ? `${value.slice(0, 60)}…` : value}`, [
    { icon: "plus", text: "Only these", run: () => include(name, value, isAttribute) },
    { icon: "minus", text: "Without these", run: () => exclude(name, value, isAttribute) },
    { icon: "copy", text: "Copy the value", run: () => copy(value, "Value") },
  ]);
  const wordMenu = (event, text) => openMenu(event, `“${text.length > 60 ? `${text.slice(0, 60)}…` : text}”`, [
    { icon: "plus", text: "Only messages with it", run: () => toggleTerm(words(text)) },
    { icon: "minus", text: "Messages without it", run: () => toggleTerm(`-${words(text)}`) },
    { icon: "copy", text: "Copy", run: () => copy(text, "Text") },
  ]);
  const timeMenu = (event, record) => {
    const ms = Date.parse(record.ts);
    const around = (span) => onZoom(ms - span, ms + span);
    openMenu(event, "Time", [
      { icon: "right", text: "From here", run: () => onZoom(ms, resolve(state.end, serverNow()) > ms ? resolve(state.end, serverNow()) : serverNow()) },
      { icon: "left", text: "Until here", run: () => onZoom(Math.min(resolve(state.start, serverNow()), ms - 1), ms + 1) },
      { icon: "clock", text: "A minute around", run: () => around(UNITS.m / 2) },
      { icon: "copy", text: "Copy the time", run: () => copy(record.ts, "Time") },
    ]);
  };
  const onName = (event, name) => (state.by === "severity" && !SEVERITY_NAMES.test(name) ? null : valueMenu(event, state.by, name));

  const index = records.findIndex((record) => record.id === selected);
  const select = (to) => records.length && setSelected(records[Math.max(0, Math.min(records.length - 1, to))].id);
  const current = () => records[index] && !records[index].gap && records[index];
  const tableKeys = (event, height) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("button, input")) return;
    const page = Math.max(1, Math.floor(height / 30) - 2);
    const moves = { ArrowDown: index + 1, ArrowUp: Math.max(0, index - 1), PageDown: index + page, PageUp: Math.max(0, index - page), Home: 0, End: records.length - 1 };
    if (event.key in moves) select(moves[event.key]);
    else if (["Enter", " "].includes(event.key) && current()) onToggle(selected);
    else if (event.key === "ArrowRight" && current() && !open.has(selected)) onToggle(selected);
    else if (event.key === "ArrowLeft" && current() && open.has(selected)) onToggle(selected);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  shortcuts.current = {
    "/": () => { input.current.focus(); input.current.select(); },
    j: () => select(index + 1),
    k: () => select(Math.max(0, index - 1)),
    Enter: () => current() && onToggle(selected),
    c: () => current() && /^-?\d+$/.test(selected) && go({ record: recordKey(current()) }),
    t: () => setPicking(!picking),
    r: again,
    l: () => setLive(!live),
    p: () => live && act({ type: tail.paused ? "resume" : "pause" }),
    e: () => !live && search.range && setExporting(true),
    f: () => setSide(!side),
    "[": () => !live && shift(-1),
    "]": () => !live && shift(1),
    "-": () => !live && onZoomOut(),
    y: () => copy(linkTo(), "Link"),
    Escape: () => { setOpen(new Set()); setSelected(null); },
  };

  const detail = (record) => html`<${Detail} record=${record} zone=${zone} words=${found} columns=${state.columns}
    onInclude=${include} onExclude=${exclude} onColumn=${onColumn} onContext=${() => go({ record: recordKey(record) })} link=${linkTo({ record: recordKey(record), live: false })} />`;
  const latest = useLatest(search.more);
  const onEnd = useCallback(() => latest.current(), []);
  const withDate = !live && search.range && search.range.end - search.range.start > 20 * UNITS.h;
  const nothing = !live && !search.busy && !error && search.records?.length === 0;
  const problem = error?.kind === "query" && error;

  const bottom = !live && records.length > 0 && html`<div class="bottom soft" role="status">${
    search.full ? html`${count(RECORDS_MAX)} records are shown. <button type="button" onClick=${() => onZoom(search.range.start, Date.parse(records.at(-1).ts) + 1)}>Go on from here</button>` :
      search.paging ? "Looking for older ones…" : search.older ? "" : "No older ones in this range."}</div>`;

  return html`<main class="explorer ${side ? "with-side" : ""}">
    <form class="bar" role="search" onSubmit=${(event) => { event.preventDefault(); submit(typed); }}>
      <div class="query ${problem ? "wrong" : ""}"><${Icon} name="search" />
        <input ref=${input} class="query-input" type="search" name="query" aria-label="Query" aria-invalid=${problem ? "true" : "false"} aria-describedby=${problem ? "query-problem" : undefined}
          placeholder='timeout   service:cart   severity>=warn   -path:*health*   ~"time(d )?out"'  autocomplete="off" autocapitalize="off" spellcheck=${false}
          value=${typed} onInput=${(event) => { setTyped(event.target.value); if (event.target.value === "" && state.query) submit(""); }} />
      </div>
      <${Picker} state=${state} zone=${zone} open=${picking} setOpen=${setPicking} onRange=${onRange} onZone=${(zone) => go({ zone }, true)} />
      <div class="acts">
        <button type="submit" class="primary" title="Search again (r)"><${Icon} name="refresh" /><span class="wide">Search</span></button>
        <button type="button" class="live-button" aria-pressed=${live} title="Live tail (l)" onClick=${() => setLive(!live)}><${Icon} name=${live ? "stop" : "play"} />Live</button>
        <${IconButton} icon="filter" label="Values and fields (f)" aria-pressed=${side} aria-controls=${side ? "side" : undefined} onClick=${() => setSide(!side)} />
        <${IconButton} icon="link" label="Copy a link to this (y)" onClick=${() => copy(linkTo(), "Link")} />
        <${IconButton} icon="download" label="Export (e)" disabled=${live || !search.range} onClick=${() => setExporting(true)} />
      </div>
      ${problem && html`<p class="query-problem problem" id="query-problem" role="alert"><${Icon} name="alert" />${problem.column !== null && html`<code>${[...state.query].slice(0, problem.column - 1).join("")}<mark>${[...state.query][problem.column - 1] ?? " "}</mark>${[...state.query].slice(problem.column).join("")}</code>`}
        <span>${problem.column !== null && `Column ${problem.column}: `}${problem.message.replace(/^at column \d+: /, "")}</span></p>`}
    </form>
    ${live ? html`<${LiveBar} tail=${tail} act=${act} onStop=${() => setLive(false)} />` :
      html`<${Histogram} hits=${search.hits} exact=${search.records && !search.older ? records.length : null} error=${search.hitsError?.kind === error?.kind ? null : search.hitsError} busy=${search.busy} by=${state.by} zone=${zone} onZoom=${onZoom} onZoomOut=${onZoomOut} onBy=${(by) => go({ by }, true)} onName=${onName} />`}
    <div class="body">
      ${side && html`<aside id="side" class="side" aria-label="Values and fields"><header class="side-head"><h2>Filter</h2><${IconButton} icon="close" label="Close" onClick=${() => setSide(false)} /></header>
        <${Facets} query=${problem ? "" : live ? state.query : search.query} range=${search.range ?? (live ? liveRange : null)} chosen=${state.facets} columns=${state.columns} onInclude=${include} onExclude=${exclude} onFacet=${onFacet} onColumn=${onColumn} /></aside>`}
      ${nothing ? html`<${Empty} state=${state} onRange=${onRange} onQuery=${(query) => go({ query })} onFilled=${again} />` :
        html`<${Table} label="Records" records=${records} columns=${state.columns} zone=${zone} withDate=${withDate} words=${found} open=${open} selected=${selected} follow=${live}
          onToggle=${onToggle} onSelect=${setSelected} onEnd=${live ? null : onEnd} onColumn=${onColumn} valueMenu=${valueMenu} wordMenu=${wordMenu} timeMenu=${timeMenu} detail=${detail} keys=${tableKeys}
          top=${search.source?.partial && !live && html`<p class="note"><${Icon} name="alert" />The database does not answer: these are only the newest records, from the cache.</p>`}
          bottom=${live && records.length === 0 ? html`<div class="empty"><p class="soft">${tail.status === "open" ? "Waiting for records that match…" : "Connecting…"}</p></div>` : bottom} />`}
    </div>
    ${!live && search.records && !nothing && html`<footer class="foot soft"><span>${plural(records.length, "record")} loaded</span>${search.tookMs !== null && html`<span>${count(search.tookMs)} ms</span>`}${search.source && html`<span class="wide">${count(search.source.database)} from the database, ${count(search.source.cache)} from the cache</span>`}<span class="grow"></span><span class="wide"><kbd>?</kbd> keys</span></footer>`}
    ${state.record && html`<${Context} key=${state.record} at=${state.record} zone=${zone} words=${found} detail=${detail} onClose=${() => go({ record: "" })} />`}
    ${exporting && html`<${Export} query=${state.query} range=${search.range} total=${search.hits?.total ?? 0} onClose=${() => setExporting(false)} />`}
  </main>`;
}

/** While the tail runs, values are counted over the last quarter of an hour before it began. */
const liveRange = { start: "-15m", end: "now" };

function LiveBar({ tail, act, onStop }) {
  const { status, paused, received, dropped, skipped, gaps, held, perSecond, error } = tail;
  const word = paused ? "Paused" : { connecting: "Connecting…", open: "Live", lost: "Connection lost, trying again…", refused: "Refused" }[status];
  return html`<section class="live-bar ${paused ? "paused" : status}" aria-label="Live tail">
    <span class="live-state" role="status"><span class="dot"></span>${word}</span>
    ${error && !["query", "away"].includes(error.kind) && html`<span class="problem"><${Icon} name="alert" />${error.message}</span>`}
    <span><b>${count(perSecond)}</b> <span class="soft">a second</span></span>
    <span><b class="received">${count(received)}</b> <span class="soft">received</span></span>
    <span class=${dropped ? "problem" : ""} title="Records that were not sent because this page, or the network, was too slow. They are stored."><b class="dropped">${count(dropped)}</b> <span class="soft">dropped</span></span>
    ${gaps > 0 && html`<span class="problem"><b>${count(gaps)}</b> gap${gaps === 1 ? "" : "s"}</span>`}
    <span class="grow"></span>
    ${paused && html`<span class="held" role="status">${plural(held.length, "new record")} waiting${skipped ? `, ${count(skipped)} older ones passed over` : ""}</span>`}
    <button type="button" class="primary" title="Pause or resume (p)" onClick=${() => act({ type: paused ? "resume" : "pause" })}><${Icon} name=${paused ? "play" : "pause"} />${paused ? "Resume" : "Pause"}</button>
    <button type="button" onClick=${() => act({ type: "clear" })}>Clear</button>
    <button type="button" onClick=${onStop}><${Icon} name="stop" />Stop</button>
  </section>`;
}
