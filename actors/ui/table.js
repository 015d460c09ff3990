// Records as rows. Only those that are seen are drawn, however many there are; an open record is as high as it is.

import { html, Icon, IconButton, plural, severityClass, useEffect, useLatest, useLayoutEffect, useMedia, useMemo, useRef, useState, whenResized } from "./view.js";
import { attribute, marked, oneLine } from "./record.js";
import { rowTime } from "./time.js";

const ROW = 27;
const ROW_PHONE = 50;
const HEAD = 29;
const BEYOND = 12;
const OPEN_GUESS = 260;

/** Where each row begins, of which only the open ones are higher than the others. */
export function layout(records, open, heights, row) {
  const opened = [];
  if (open.size) records.forEach((record, index) => open.has(record.id) && opened.push([index, heights.get(record.id) ?? OPEN_GUESS]));
  const top = (index) => index * row + opened.reduce((sum, [at, height]) => (at < index ? sum + height : sum), 0);
  const at = (y) => {
    let [low, high] = [0, records.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (top(middle + 1) <= y) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  return { top, at, height: top(records.length) };
}

/** Says how high it is. */
function Opened({ id, top, onHeight, children }) {
  const box = useRef();
  useLayoutEffect(() => whenResized(box.current, () => onHeight(id, box.current.offsetHeight)), [id]);
  return html`<div class="opened" role="row" ref=${box} style=${{ top: `${top}px` }}><div role="gridcell">${children}</div></div>`;
}

/**
 * `head`: what stands before the first row. `onEnd`: the last rows are near. `detail`: what an open record shows.
 * `open`: a set of ids. `selected`: the id of the record that the keyboard is at.
 */
export function Table({ label, records, columns, zone, withDate, words, open, selected, top: head, bottom, onToggle, onSelect, onEnd, onColumn, valueMenu, wordMenu, timeMenu, detail, follow, keys }) {
  const box = useRef();
  const phone = useMedia("(max-width: 720px)");
  const row = phone ? ROW_PHONE : ROW;
  const [view, setView] = useState({ from: 0, height: 800 });
  const [heights, setHeights] = useState(() => new Map());
  const place = useMemo(() => layout(records, open, heights, row), [records, open, heights, row]);
  const onHeight = (id, height) => setHeights((known) => (known.get(id) === height ? known : new Map(known).set(id, height)));
  const look = () => setView({ from: box.current.scrollTop, height: box.current.clientHeight });

  useLayoutEffect(() => whenResized(box.current, look), []);
  // Live: who has scrolled down keeps what is before the eyes while new rows come in above.
  const first = useRef(null);
  useLayoutEffect(() => {
    const before = first.current;
    first.current = records[0]?.id ?? null;
    if (!follow || before === null || box.current.scrollTop <= row) return;
    const index = records.findIndex((record) => record.id === before);
    if (index > 0) box.current.scrollTop += place.top(index);
  }, [records]);

  const from = Math.max(0, place.at(view.from - HEAD) - BEYOND);
  const to = Math.min(records.length, place.at(view.from + view.height) + BEYOND);
  const near = to >= records.length - 40;
  useEffect(() => { if (near && onEnd) onEnd(); }, [near, records]);

  // The row that the keyboard is at is in sight.
  const latest = useLatest({ place, records });
  useEffect(() => {
    const index = selected ? latest.current.records.findIndex((record) => record.id === selected) : -1;
    if (index < 0) return;
    const top = latest.current.place.top(index);
    const seen = box.current;
    if (top < seen.scrollTop) seen.scrollTop = top;
    else if (top + row + HEAD > seen.scrollTop + seen.clientHeight) seen.scrollTop = top + row + HEAD - seen.clientHeight;
  }, [selected]);

  const value = (record, field, text, shown) =>
    text === "" || text === undefined ? html`<span role="gridcell" class="cell"></span>` :
      html`<span role="gridcell" class="cell"><button type="button" tabindex="-1" class="value" onClick=${(event) => valueMenu(event, field, text)}>${shown ?? text}</button></span>`;
  const onRow = (event, record) => {
    if (event.target.closest("button") || String(getSelection()).length) return;
    onSelect(record.id);
    onToggle(record.id);
  };
  const onWords = (event) => {
    const text = String(getSelection()).trim();
    if (text && text.length <= 200 && event.target.closest?.(".message, .detail-message")) wordMenu(event, text);
  };

  const rows = [];
  let seen = false;
  for (let index = from; index < to; index += 1) {
    const record = records[index];
    const top = place.top(index);
    if (record.gap) {
      rows.push(html`<div key=${record.id} role="row" aria-rowindex=${index + 2} class="row gap" style=${{ top: `${top}px` }}><span role="gridcell"><${Icon} name="alert" /> ${record.missing === null ? "Records" : plural(record.missing, "record")} may be missing here: what came while the connection was away is kept no longer for a tail. A search finds them.</span></div>`);
      continue;
    }
    const isOpen = open.has(record.id);
    seen ||= record.id === selected;
    rows.push(html`<div key=${record.id} id=${`row-${record.id}`} role="row" aria-rowindex=${index + 2} aria-selected=${record.id === selected}
        class="row ${severityClass(record.severity_text)} ${isOpen ? "is-open" : ""} ${record.id === selected ? "selected" : ""} ${record.mark ? "marked" : ""}"
        style=${{ top: `${top}px` }} onClick=${(event) => onRow(event, record)}>
      <span role="gridcell" class="cell toggle"><button type="button" tabindex="-1" aria-expanded=${isOpen} aria-label=${isOpen ? "Close this record" : "Open this record"} onClick=${() => { onSelect(record.id); onToggle(record.id); }}><${Icon} name=${isOpen ? "down" : "right"} /></button></span>
      <span role="gridcell" class="cell time"><button type="button" tabindex="-1" class="value" onClick=${(event) => timeMenu(event, record)}>${rowTime(record.ts, zone, withDate)}</button></span>
      <span role="gridcell" class="cell severity">${record.severity_text && html`<button type="button" tabindex="-1" class="value" onClick=${(event) => valueMenu(event, "severity", record.severity_text)}>${record.severity_text === "UNSPECIFIED" ? html`<span title="No severity was given">–</span>` : record.severity_text}</button>`}</span>
      ${value(record, "service", record.service)}
      ${columns.map((name) => value(record, name, attribute(record, name)))}
      <span role="gridcell" class="cell message"><bdi>${marked(oneLine(record.message), words)}</bdi></span>
    </div>`);
    if (isOpen) {
      rows.push(html`<${Opened} key=${`open-${record.id}`} id=${record.id} top=${top + row} onHeight=${onHeight}>${detail(record)}<//>`);
    }
  }

  return html`<div class="table-box">
    ${head}
    <div class="table" ref=${box} onScroll=${look} onMouseUp=${onWords}>
      <div class="grid" role="grid" aria-label=${label} aria-rowcount=${records.length + 1} aria-activedescendant=${seen ? `row-${selected}` : undefined} tabindex="0"
          style=${{ "--columns": columns.length ? `repeat(${columns.length}, minmax(80px, 150px))` : "" }} onKeyDown=${(event) => keys(event, view.height)}>
        <div class="row head" role="row" aria-rowindex="1">
          <span role="columnheader"><span class="hidden">Open</span></span>
          <span role="columnheader">Time</span><span role="columnheader">Severity</span><span role="columnheader">Service</span>
          ${columns.map((name) => html`<span role="columnheader" class="chosen" key=${name}><span class="name" title=${name}>${name}</span><${IconButton} icon="close" label=${`Remove the column ${name}`} onClick=${() => onColumn(name)} /></span>`)}
          <span role="columnheader">Message</span>
        </div>
        <div class="canvas" role=${rows.length ? "rowgroup" : undefined} style=${{ height: `${place.height}px` }}>${rows}</div>
      </div>
      ${bottom}
    </div>
  </div>`;
}
