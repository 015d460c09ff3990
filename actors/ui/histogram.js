// How many records there were when, by severity or service: one bar per step, stacked. Dragging over it narrows the time.

import { uncounted } from "./api.js";
import { count, html, Icon, IconButton, severityClass, short, useEffect, useRef, useState, useWidth } from "./view.js";
import { duration, stamp, tick } from "./time.js";

const HEIGHT = 92;
const ORDER = ["FATAL", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
const rank = (name) => {
  const at = ORDER.findIndex((level) => name.startsWith(level));
  return at < 0 ? ORDER.length : at;
};

/** The series in the order in which they are stacked: by weight, or by size; with the class that colours each. */
export function arrange(hits, by) {
  const series = [...(hits?.series ?? [])];
  if (by === "severity") series.sort((a, b) => rank(a.name) - rank(b.name));
  else series.sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1));
  return series.map((one, nth) => ({ ...one, color: by === "severity" ? severityClass(one.name) : `series-${Math.min(nth, 7)}` }));
}

/** One path per series, so that the picture has as many elements as series, not as bars. */
function paths(series, buckets, width, peak) {
  const bar = width / buckets;
  const gap = bar > 4 ? 1 : 0;
  const below = new Float64Array(buckets);
  return series.map(({ name, counts, color }) => {
    let d = "";
    for (let i = 0; i < buckets; i += 1) {
      if (!counts[i]) continue;
      // A single record among a million is still seen.
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
  // The first bar begins before the range does: where all of the range's records are here, their number is known better.
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
    // A touch or a click only shows a bar; a finger's breadth narrows the time.
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
  const told = at === null || !hits ? "" :
    `${stamp(time(at), zone)}, ${duration(hits.step_ms)}: ${count(totals[at])} records` +
    series.filter((one) => one.counts[at]).map((one) => `, ${one.name || "none"} ${count(one.counts[at])}`).join("");

  return html`<section class="histogram ${busy ? "busy" : ""}" aria-label="Volume">
    <div class="legend">
      <strong class="total">${hits ? count(total) : "–"}<span class="soft"> ${total === 1 ? "record" : "records"}</span></strong>
      <ul aria-label="Series">${series.slice(0, 8).map((one) => html`<li key=${one.name}>
        <button type="button" class="legend-item" onClick=${(event) => onName(event, one.name)}>
          <span class="swatch ${one.color}"></span>${one.name || "none"} <span class="soft">${short(one.total)}</span></button></li>`)}
        ${series.length > 8 && html`<li class="soft">and ${series.length - 8} more</li>`}</ul>
      <span class="grow"></span>
      ${error && html`<span class="problem"><${Icon} name="alert" />${uncounted(error)}</span>`}
      ${hits && html`<span class="soft step" title="One bar">${duration(hits.step_ms)} a bar</span>`}
      <label class="select"><span class="hidden">Bars by</span><select value=${by} onChange=${(event) => onBy(event.target.value)}>
        <option value="severity">by severity</option><option value="service">by service</option></select></label>
      <${IconButton} icon="zoomOut" label="Zoom out: three times the range" onClick=${onZoomOut} />
    </div>
    <div class="plot" ref=${plot} tabindex="0" role="group" aria-label="Records over time. Arrow keys look at a bar, with Shift they choose several, Enter narrows the time to them."
        onPointerDown=${onPointerDown} onPointerMove=${(event) => hits && setAt(bucketAt(event))} onPointerUp=${onPointerUp} onDblClick=${onDblClick}
        onPointerCancel=${() => setFrom(null)} onPointerLeave=${() => from === null && setAt(null)} onKeyDown=${onKeyDown} onBlur=${() => { setAt(null); setFrom(null); }}>
      <svg width=${width} height=${HEIGHT} aria-hidden="true">${hits && width > 0 && paths(series, buckets, width, peak)}</svg>
      ${hits && hits.total > 0 && html`<span class="peak soft" aria-hidden="true">${short(peak)}</span>`}
      ${at !== null && hits && html`<div class="hover" style=${{ left: `${at * bar}px`, width: `${bar}px` }}></div>`}
      ${from !== null && hits && html`<div class="drag" style=${{ left: `${Math.min(from, at) * bar}px`, width: `${(Math.abs(at - from) + 1) * bar}px` }}></div>`}
      ${at !== null && hits && html`<div class="tip" style=${at * bar > width / 2 ? { right: `${width - at * bar + 8}px` } : { left: `${(at + 1) * bar + 8}px` }}>
        <div class="soft">${stamp(time(at), zone)}${from !== null && from !== at ? ` · ${duration((Math.abs(at - from) + 1) * hits.step_ms)}` : ""}</div>
        ${totals[at] === 0 && html`<div>no records</div>`}
        ${series.filter((one) => one.counts[at]).slice(0, 8).map((one) => html`<div class="tip-row"><span class="swatch ${one.color}"></span><span>${one.name || "none"}</span><b>${count(one.counts[at])}</b></div>`)}
      </div>`}
    </div>
    <div class="axis" aria-hidden="true">${ticks.map((bucket) => html`<span style=${{ left: `${bucket * bar}px` }}>${tick(time(bucket), zone, hits.end_ms - hits.start_ms)}</span>`)}</div>
    <div class="hidden" role="status">${document.activeElement === plot.current ? told : ""}</div>
  </section>`;
}
