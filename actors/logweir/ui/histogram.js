// Histogram: stacked record counts per step, by severity or service. Dragging selects a time range.

import { countsError } from "./api.js";
import { count, html, Icon, IconButton, severityClass, short, useEffect, useRef, useState, useWidth } from "./components.js";
import { duration, stamp, tick } from "./time.js";

const HEIGHT = 92;
const ORDER = ["FATAL", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
const rank = (name) => {
  const at = ORDER.findIndex((level) => name.startsWith(level));
  return at < 0 ? ORDER.length : at;
};

/** Returns the series in stacking order (by severity or by size), each with its color class. */
export function arrange(hits, by) {
  const series = [...(hits?.series ?? [])];
  if (by === "severity") series.sort((a, b) => rank(a.name) - rank(b.name));
  else series.sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1));
  return series.map((one, nth) => ({ ...one, color: by === "severity" ? severityClass(one.name) : `series-${Math.min(nth, 7)}` }));
}

/** Returns one path per series, to keep the SVG at one element per series instead of one per bar. */
function paths(series, buckets, width, peak) {
  const bar = width / buckets;
  const gap = bar > 4 ? 1 : 0;
  const below = new Float64Array(buckets);
  return series.map(({ name, counts, color }) => {
    let d = "";
    for (let i = 0; i < buckets; i += 1) {
      if (!counts[i]) continue;
      // A single record among a million stays visible.
      const height = Math.max((counts[i] / peak) * (HEIGHT - 4), 1.5);
      const y = HEIGHT - below[i] - height;
      d += `M${(i * bar).toFixed(2)} ${y.toFixed(2)}h${(bar - gap).toFixed(2)}v${height.toFixed(2)}h${(gap - bar).toFixed(2)}z`;
      below[i] += height;
    }
    return html`<path key=${name} class=${color} d=${d} />`;
  });
}

export function Histogram({ hits, exact, error, busy, by, zone, onZoom, onZoomOut, onBy, onName }) {
  const plot = useRef();
  const width = useWidth(plot);
  const [at, setAt] = useState(null);
  const [from, setFrom] = useState(null);
  const series = arrange(hits, by);
  const buckets = hits ? Math.max(1, Math.ceil((hits.end_ms - hits.start_ms) / hits.step_ms)) : 1;
  const totals = Array.from({ length: buckets }, (_, i) => series.reduce((sum, one) => sum + (one.counts[i] ?? 0), 0));
  const peak = Math.max(1, ...totals);
  const bar = width / buckets;
  // The first bar starts before the range. If all records of the range are loaded, their number is exact.
  const total = exact ?? hits?.total;
  useEffect(() => { setAt(null); setFrom(null); }, [hits]);

  const time = (bucket) => hits.start_ms + bucket * hits.step_ms;
  const bucketAt = (event) => {
    const x = event.clientX - plot.current.getBoundingClientRect().left;
    return Math.max(0, Math.min(buckets - 1, Math.floor(x / bar)));
  };
  const zoom = (a, b) => onZoom(time(Math.min(a, b)), time(Math.max(a, b) + 1));
  const onPointerDown = (event) => {
    if (!hits || event.button) return;
    plot.current.setPointerCapture(event.pointerId);
    const bucket = bucketAt(event);
    setFrom(bucket);
    setAt(bucket);
  };
  const onPointerUp = (event) => {
    if (from === null) return;
    const to = bucketAt(event);
    // A tap or click only inspects a bar; a drag selects a range.
    if (to !== from) zoom(from, to);
    setFrom(null);
  };
  const onDblClick = (event) => hits && zoom(bucketAt(event), bucketAt(event));
  const onKeyDown = (event) => {
    if (!hits) return;
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) {
      const next = Math.max(0, Math.min(buckets - 1, (at ?? (move > 0 ? -1 : buckets)) + move));
      if (event.shiftKey) setFrom(from ?? at ?? next);
      else setFrom(null);
      setAt(next);
    } else if (event.key === "Enter" && at !== null) zoom(from ?? at, at);
    else if (event.key === "Escape" && at !== null) { setAt(null); setFrom(null); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  };

  const ticks = hits && width ? [0.02, 0.265, 0.51, 0.755].map((share) => Math.round(share * buckets)).filter((v, i, all) => v < buckets && all.indexOf(v) === i) : [];
  const announcement = at === null || !hits ? "" :
    `${stamp(time(at), zone)}, ${duration(hits.step_ms)}: ${count(totals[at])} records` +
    series.filter((one) => one.counts[at]).map((one) => `, ${one.name || "(none)"} ${count(one.counts[at])}`).join("");

  return html`<section class="histogram ${busy ? "busy" : ""}" aria-label="Record volume">
    <div class="legend">
      <strong class="total">${hits ? count(total) : "–"}<span class="muted"> ${total === 1 ? "record" : "records"}</span></strong>
      <ul aria-label="Series">${series.slice(0, 8).map((one) => html`<li key=${one.name}>
        <button type="button" class="legend-item" onClick=${(event) => onName(event, one.name)}>
          <span class="swatch ${one.color}"></span>${one.name || "(none)"} <span class="muted">${short(one.total)}</span></button></li>`)}
        ${series.length > 8 && html`<li class="muted">+${series.length - 8} more</li>`}</ul>
      <span class="spacer"></span>
      ${error && html`<span class="problem"><${Icon} name="alert" />${countsError(error)}</span>`}
      ${hits && html`<span class="muted step" title="Time covered by one bar">${duration(hits.step_ms)} per bar</span>`}
      <label class="select"><span class="hidden">Group bars</span><select value=${by} onChange=${(event) => onBy(event.target.value)}>
        <option value="severity">by severity</option><option value="service">by service</option></select></label>
      <${IconButton} icon="zoomOut" label="Zoom out 3× (-)" onClick=${onZoomOut} />
    </div>
    <div class="plot" ref=${plot} tabindex="0" role="group" aria-label="Records over time. Press the arrow keys to inspect a bar, Shift with an arrow key to select several, Enter to zoom in."
        onPointerDown=${onPointerDown} onPointerMove=${(event) => hits && setAt(bucketAt(event))} onPointerUp=${onPointerUp} onDblClick=${onDblClick}
        onPointerCancel=${() => setFrom(null)} onPointerLeave=${() => from === null && setAt(null)} onKeyDown=${onKeyDown} onBlur=${() => { setAt(null); setFrom(null); }}>
      <svg width=${width} height=${HEIGHT} aria-hidden="true">${hits && width > 0 && paths(series, buckets, width, peak)}</svg>
      ${hits && hits.total > 0 && html`<span class="peak muted" aria-hidden="true">${short(peak)}</span>`}
      ${at !== null && hits && html`<div class="hover" style=${{ left: `${at * bar}px`, width: `${bar}px` }}></div>`}
      ${from !== null && hits && html`<div class="drag" style=${{ left: `${Math.min(from, at) * bar}px`, width: `${(Math.abs(at - from) + 1) * bar}px` }}></div>`}
      ${at !== null && hits && html`<div class="tip" style=${at * bar > width / 2 ? { right: `${width - at * bar + 8}px` } : { left: `${(at + 1) * bar + 8}px` }}>
        <div class="muted">${stamp(time(at), zone)}${from !== null && from !== at ? ` · ${duration((Math.abs(at - from) + 1) * hits.step_ms)}` : ""}</div>
        ${totals[at] === 0 && html`<div>No records</div>`}
        ${series.filter((one) => one.counts[at]).slice(0, 8).map((one) => html`<div class="tip-row"><span class="swatch ${one.color}"></span><span>${one.name || "(none)"}</span><b>${count(one.counts[at])}</b></div>`)}
      </div>`}
    </div>
    <div class="axis" aria-hidden="true">${ticks.map((bucket) => html`<span style=${{ left: `${bucket * bar}px` }}>${tick(time(bucket), zone, hits.end_ms - hits.start_ms)}</span>`)}</div>
    <div class="hidden" role="status">${document.activeElement === plot.current ? announcement : ""}</div>
  </section>`;
}
