// Log explorer: query bar, histogram, facets, and the table of records.

import { get, serverNow } from "./api.js";
import { resolve, UNITS } from "./time.js";
import { toUrl, zoneOf } from "./state.js";
import { addTerm, containsTerm, hasTerm, highlightPattern, removeTerm, term } from "./terms.js";
import { copy, count, html, Icon, IconButton, openMenu, PartialNote, plural, showToast, useCallback, useEffect, useLatest, useMedia, useMemo, useRef, useState } from "./components.js";
import { PAGE, RECORDS_MAX, useSearch } from "./search.js";
import { useTail } from "./tail.js";
import { Context } from "./context.js";
import { Detail } from "./record.js";
import { EmptyState } from "./empty-state.js";
import { Export } from "./export.js";
import { Facets } from "./facets.js";
import { Histogram } from "./histogram.js";
import { TimePicker } from "./time-picker.js";
import { Table } from "./table.js";

const RETRY_MS = 3000;
const SEVERITY_NAMES = /^(?:TRACE|DEBUG|INFO|WARN|ERROR|FATAL)/;

export function Explorer({ state, navigate, onFailure, shortcuts }) {
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
  const [tail, dispatch] = useTail(state.query, state.live);
  const live = state.live;
  const records = live ? tail.records : search.records ?? [];
  const error = live ? tail.error : search.error;
  const highlight = useMemo(() => highlightPattern(state.query), [state.query]);

  useEffect(() => setTyped(state.query), [state.query]);
  useEffect(() => { setOpen(new Set()); setSelected(null); }, [state.query, state.start, state.end, live]);
  // The live bar shows errors of the tail itself; only a missing token needs the dialog.
  useEffect(() => onFailure(live && error?.kind !== "token" ? null : error), [error, live]);
  // Retries while the server is unreachable or busy, or its database is down or behind. Not while further pages are shown, which a retry would drop.
  useEffect(() => {
    const retry = !live && (error ? ["unreachable", "busy", "unavailable"].includes(error.kind) : search.source?.partial && records.length <= PAGE);
    const timer = retry && setTimeout(() => setRun((run) => run + 1), (error?.retryAfter ?? 0) * 1000 || RETRY_MS);
    return () => clearTimeout(timer);
  }, [error, live, search.source]);

  const refresh = () => setRun((run) => run + 1);
  const submit = (query) => (query.trim() === state.query ? refresh() : navigate({ query: query.trim() }));
  const toggleTerm = (one) => navigate({ query: hasTerm(state.query, one) ? removeTerm(state.query, one) : addTerm(state.query, one) });
  const include = (name, value, isAttribute) => toggleTerm(term(name, value, isAttribute));
  const exclude = (name, value, isAttribute) => toggleTerm(`-${term(name, value, isAttribute)}`);
  const toggled = (list, name) => (list.includes(name) ? list.filter((known) => known !== name) : [...list, name].slice(-20));
  const onColumn = (name) => navigate({ columns: toggled(state.columns, name) }, true);
  const onFacet = (name) => navigate({ facets: toggled(state.facets, name) }, true);
  const onRange = (start, end) => navigate({ start, end, live: false });
  const onZoom = (start, end) => onRange(new Date(start).toISOString(), new Date(end).toISOString());
  const onZoomOut = () => {
    const [start, end] = [resolve(state.start, serverNow()), resolve(state.end, serverNow())];
    const span = end - start;
    // Does not extend into the future.
    const to = Math.min(end + span, Math.max(end, serverNow()));
    onZoom(Math.max(0, to - span * 3), to);
  };
  const shift = (by) => {
    const [start, end] = [resolve(state.start, serverNow()), resolve(state.end, serverNow())];
    onZoom(start + by * (end - start), end + by * (end - start));
  };
  /** Extends the range to the nearest earlier record, and as much before it as the range spans. */
  const onEarlier = async () => {
    const { start, end } = search.range;
    try {
      const { records: [found] } = await get("query", { query: state.query, start: 0, end: start, limit: 1 });
      if (!found) return showToast("No earlier records");
      onRange(new Date(Math.max(0, Date.parse(found.ts) - (end - start))).toISOString(), state.end);
    } catch (error) {
      onFailure(error);
    }
  };
  const onToggle = useCallback((id) => setOpen((open) => {
    const next = new Set(open);
    if (!next.delete(id)) next.add(id);
    return next;
  }), []);
  const setLive = (live) => navigate({ live, ...(live ? { record: "" } : {}) });

  /** Returns a permalink: relative times become absolute, so that it shows the same range tomorrow. */
  const linkTo = (patch = {}) => {
    const fixed = (text) => new Date(resolve(text, serverNow())).toISOString();
    return location.origin + toUrl({ ...state, ...(live ? {} : { start: fixed(state.start), end: fixed(state.end) }), zone: state.zone, ...patch });
  };
  const recordKey = (record) => `${record.id}~${record.ts}`;

  const valueMenu = (event, name, value, isAttribute) => openMenu(event, `${name} = ${value.length > 60 ? `${value.slice(0, 60)}…` : value}`, [
    { icon: "plus", text: "Filter for value", run: () => include(name, value, isAttribute) },
    { icon: "minus", text: "Exclude value", run: () => exclude(name, value, isAttribute) },
    { icon: "copy", text: "Copy value", run: () => copy(value, "Value") },
  ]);
  const textMenu = (event, text) => openMenu(event, `“${text.length > 60 ? `${text.slice(0, 60)}…` : text}”`, [
    { icon: "plus", text: "Filter for text", run: () => toggleTerm(containsTerm(text)) },
    { icon: "minus", text: "Exclude text", run: () => toggleTerm(`-${containsTerm(text)}`) },
    { icon: "copy", text: "Copy text", run: () => copy(text, "Text") },
  ]);
  const timeMenu = (event, record) => {
    const ms = Date.parse(record.ts);
    const rangeAround = (span) => onZoom(ms - span, ms + span);
    openMenu(event, "Time", [
      { icon: "right", text: "Start range here", run: () => onZoom(ms, resolve(state.end, serverNow()) > ms ? resolve(state.end, serverNow()) : serverNow()) },
      { icon: "left", text: "End range here", run: () => onZoom(Math.min(resolve(state.start, serverNow()), ms - 1), ms + 1) },
      { icon: "clock", text: "±1 minute", run: () => rangeAround(UNITS.m) },
      { icon: "copy", text: "Copy timestamp", run: () => copy(record.ts, "Time") },
    ]);
  };
  const onName = (event, name) => (state.by === "severity" && !SEVERITY_NAMES.test(name) ? null : valueMenu(event, state.by, name));

  const index = records.findIndex((record) => record.id === selected);
  const select = (to) => records.length && setSelected(records[Math.max(0, Math.min(records.length - 1, to))].id);
  const currentRecord = () => records[index] && !records[index].gap && records[index];
  const tableKeys = (event, height) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("button, input")) return;
    const pageRows = Math.max(1, Math.floor(height / 30) - 2);
    const moves = { ArrowDown: index + 1, ArrowUp: Math.max(0, index - 1), PageDown: index + pageRows, PageUp: Math.max(0, index - pageRows), Home: 0, End: records.length - 1 };
    if (event.key in moves) select(moves[event.key]);
    else if (["Enter", " "].includes(event.key) && currentRecord()) onToggle(selected);
    else if (event.key === "ArrowRight" && currentRecord() && !open.has(selected)) onToggle(selected);
    else if (event.key === "ArrowLeft" && currentRecord() && open.has(selected)) onToggle(selected);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  shortcuts.current = {
    "/": () => { input.current.focus(); input.current.select(); },
    j: () => select(index + 1),
    k: () => select(Math.max(0, index - 1)),
    Enter: () => currentRecord() && onToggle(selected),
    c: () => currentRecord() && /^-?\d+$/.test(selected) && navigate({ record: recordKey(currentRecord()) }),
    t: () => setPicking(!picking),
    r: refresh,
    l: () => setLive(!live),
    p: () => live && dispatch({ type: tail.paused ? "resume" : "pause" }),
    e: () => !live && search.range && setExporting(true),
    f: () => setSide(!side),
    "[": () => !live && shift(-1),
    "]": () => !live && shift(1),
    "-": () => !live && onZoomOut(),
    y: () => copy(linkTo(), "Link"),
    Escape: () => { setOpen(new Set()); setSelected(null); },
  };

  const detail = (record) => html`<${Detail} record=${record} zone=${zone} highlight=${highlight} columns=${state.columns}
    onInclude=${include} onExclude=${exclude} onColumn=${onColumn} onContext=${() => navigate({ record: recordKey(record) })} link=${linkTo({ record: recordKey(record), live: false })} />`;
  const latest = useLatest(search.more);
  const onEnd = useCallback(() => latest.current(), []);
  const withDate = !live && search.range && search.range.end - search.range.start > 20 * UNITS.h;
  const isEmpty = !live && !search.busy && !error && search.records?.length === 0 && !search.source?.partial;
  const queryError = error?.kind === "query" && error;

  const bottom = !live && records.length > 0 && html`<div class="bottom muted" role="status">${
    search.full ? html`${count(RECORDS_MAX)} records loaded, the maximum in the browser. <button type="button" onClick=${() => onZoom(search.range.start, Date.parse(records.at(-1).ts) + 1)}>Continue from here</button>` :
      search.paging ? "Loading older records…" : search.older ? "" : html`No older records in this range. <button type="button" onClick=${onEarlier}>Search earlier</button>`}</div>`;

  return html`<main class="explorer ${side ? "with-side" : ""}">
    <form class="bar" role="search" onSubmit=${(event) => { event.preventDefault(); submit(typed); }}>
      <div class="query ${queryError ? "wrong" : ""}"><${Icon} name="search" />
        <input ref=${input} class="query-input" type="search" name="query" aria-label="Query" aria-invalid=${queryError ? "true" : "false"} aria-describedby=${queryError ? "query-problem" : undefined}
          placeholder='timeout   service:cart   severity>=warn   -path:*health*   ~"time(d )?out"'  autocomplete="off" autocapitalize="off" spellcheck=${false}
          value=${typed} onInput=${(event) => { setTyped(event.target.value); if (event.target.value === "" && state.query) submit(""); }} />
      </div>
      <${TimePicker} state=${state} zone=${zone} open=${picking} setOpen=${setPicking} onRange=${onRange} onZone=${(zone) => navigate({ zone }, true)} />
      <div class="actions">
        <button type="submit" class="primary" title="Run the query (r)"><${Icon} name="refresh" /><span class="wide">Search</span></button>
        <button type="button" class="live-button" aria-pressed=${live} title="Live tail (l)" onClick=${() => setLive(!live)}><${Icon} name=${live ? "stop" : "play"} />Live</button>
        <${IconButton} icon="filter" label="Filters (f)" aria-pressed=${side} aria-controls=${side ? "side" : undefined} onClick=${() => setSide(!side)} />
        <${IconButton} icon="link" label="Copy link (y)" onClick=${() => copy(linkTo(), "Link")} />
        <${IconButton} icon="download" label="Export (e)" disabled=${live || !search.range} onClick=${() => setExporting(true)} />
      </div>
      ${queryError && html`<p class="query-problem problem" id="query-problem" role="alert"><${Icon} name="alert" />${queryError.column !== null && html`<code>${[...state.query].slice(0, queryError.column - 1).join("")}<mark>${[...state.query][queryError.column - 1] ?? " "}</mark>${[...state.query].slice(queryError.column).join("")}</code>`}
        <span>${queryError.column !== null && `Column ${queryError.column}: `}${queryError.message.replace(/^at column \d+: /, "")}</span></p>`}
    </form>
    ${live ? html`<${LiveBar} tail=${tail} dispatch=${dispatch} onStop=${() => setLive(false)} />` :
      html`<${Histogram} hits=${search.hits} exact=${search.records && !search.older ? records.length : null} error=${search.hitsError?.kind === error?.kind ? null : search.hitsError} busy=${search.busy} by=${state.by} zone=${zone} onZoom=${onZoom} onZoomOut=${onZoomOut} onBy=${(by) => navigate({ by }, true)} onName=${onName} />`}
    <div class="body">
      ${side && html`<aside id="side" class="side" aria-label="Filters"><header class="side-head"><h2>Filters</h2><${IconButton} icon="close" label="Close filters" onClick=${() => setSide(false)} /></header>
        <${Facets} query=${queryError ? "" : live ? state.query : search.query} range=${search.range ?? (live ? liveRange : null)} chosen=${state.facets} columns=${state.columns} onInclude=${include} onExclude=${exclude} onFacet=${onFacet} onColumn=${onColumn} /></aside>`}
      ${isEmpty ? html`<${EmptyState} state=${state} zone=${zone} onRange=${onRange} onQuery=${(query) => navigate({ query })} onFirstRecord=${refresh} />` :
        html`<${Table} label="Records" records=${records} columns=${state.columns} zone=${zone} withDate=${withDate} highlight=${highlight} open=${open} selected=${selected} follow=${live}
          onToggle=${onToggle} onSelect=${setSelected} onEnd=${live ? null : onEnd} onColumn=${onColumn} valueMenu=${valueMenu} textMenu=${textMenu} timeMenu=${timeMenu} detail=${detail} keys=${tableKeys}
          top=${search.source?.partial && !live && html`<${PartialNote} ...${search.source} />`}
          bottom=${live && records.length === 0 ? html`<div class="empty-state"><p class="muted">${tail.status === "open" ? "Waiting for matching records…" : "Connecting…"}</p></div>` : bottom} />`}
    </div>
    ${!live && search.records && !isEmpty && html`<footer class="foot muted"><span>${plural(records.length, "record")} loaded</span>${search.tookMs !== null && html`<span>${count(search.tookMs)} ms</span>`}${search.source && html`<span class="wide">${count(search.source.database)} from the database, ${count(search.source.cache)} from the cache</span>`}<span class="spacer"></span><span class="wide"><kbd>?</kbd> shortcuts</span></footer>`}
    ${state.record && html`<${Context} key=${state.record} at=${state.record} zone=${zone} highlight=${highlight} detail=${detail} onClose=${() => navigate({ record: "" })} />`}
    ${exporting && html`<${Export} query=${state.query} range=${search.range} total=${search.hits?.total ?? 0} onClose=${() => setExporting(false)} />`}
  </main>`;
}

/** During a live tail, facets cover the 15 minutes before it started. */
const liveRange = { start: "-15m", end: "now" };

function LiveBar({ tail, dispatch, onStop }) {
  const { status, paused, received, dropped, skipped, gaps, held, perSecond, error } = tail;
  const label = paused ? "Paused" : { connecting: "Connecting…", open: "Live", lost: "Connection lost, reconnecting…", rejected: "Rejected" }[status];
  return html`<section class="live-bar ${paused ? "paused" : status}" aria-label="Live tail">
    <span class="live-state" role="status"><span class="dot"></span>${label}</span>
    ${error && !["query", "unreachable"].includes(error.kind) && html`<span class="problem"><${Icon} name="alert" />${error.message}</span>`}
    <span><b>${count(perSecond)}</b> <span class="muted">per second</span></span>
    <span><b class="received">${count(received)}</b> <span class="muted">received</span></span>
    <span class=${dropped ? "problem" : ""} title="Records not sent here because the live tail reached its rate limit or the connection was too slow. They are stored and searchable."><b class="dropped">${count(dropped)}</b> <span class="muted">dropped</span></span>
    ${gaps > 0 && html`<span class="problem"><b>${count(gaps)}</b> gap${gaps === 1 ? "" : "s"}</span>`}
    <span class="spacer"></span>
    ${paused && html`<span class="held" role="status">${plural(held.length, "new record")} waiting${skipped ? `, ${count(skipped)} older skipped` : ""}</span>`}
    <button type="button" class="primary" title="Pause or resume (p)" onClick=${() => dispatch({ type: paused ? "resume" : "pause" })}><${Icon} name=${paused ? "play" : "pause"} />${paused ? "Resume" : "Pause"}</button>
    <button type="button" onClick=${() => dispatch({ type: "clear" })}>Clear</button>
    <button type="button" onClick=${onStop}><${Icon} name="stop" />Stop</button>
  </section>`;
}
