// Virtual table of records: renders only visible rows. Expanded records have their natural height.

import { html, Icon, IconButton, plural, severityClass, useEffect, useLatest, useLayoutEffect, useMedia, useMemo, useRef, useState, onResize } from "./components.js";
import { attribute, highlighted, oneLine } from "./record.js";
import { rowTime } from "./time.js";

const ROW = 27;
const ROW_PHONE = 50;
const HEAD = 29;
const OVERSCAN = 12;
const EXPANDED_HEIGHT_ESTIMATE = 260;

/** Returns the vertical layout of the rows; expanded records add their measured height. */
export function layout(records, open, heights, row) {
  const opened = [];
  if (open.size) records.forEach((record, index) => open.has(record.id) && opened.push([index, heights.get(record.id) ?? EXPANDED_HEIGHT_ESTIMATE]));
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

/** An expanded record; reports its height. */
function ExpandedRow({ id, top, onHeight, children }) {
  const box = useRef();
  useLayoutEffect(() => onResize(box.current, () => onHeight(id, box.current.offsetHeight)), [id]);
  return html`<div class="opened" role="row" ref=${box} style=${{ top: `${top}px` }}><div role="gridcell">${children}</div></div>`;
}

/**
 * `head`: content above the table. `onEnd`: called near the last row. `detail`: renders an expanded record.
 * `open`: set of expanded ids. `selected`: id of the record with keyboard focus.
 */
export function Table({ label, records, columns, zone, withDate, highlight, open, selected, top: head, bottom, onToggle, onSelect, onEnd, onColumn, valueMenu, textMenu, timeMenu, detail, follow, keys }) {
  const box = useRef();
  const phone = useMedia("(max-width: 720px)");
  const row = phone ? ROW_PHONE : ROW;
  const [view, setView] = useState({ from: 0, height: 800 });
  const [heights, setHeights] = useState(() => new Map());
  const positions = useMemo(() => layout(records, open, heights, row), [records, open, heights, row]);
  const onHeight = (id, height) => setHeights((known) => (known.get(id) === height ? known : new Map(known).set(id, height)));
  const measure = () => setView({ from: box.current.scrollTop, height: box.current.clientHeight });

  useLayoutEffect(() => onResize(box.current, measure), []);
  // Live tail: when scrolled down, keeps the visible rows in place while new rows arrive above.
  const first = useRef(null);
  useLayoutEffect(() => {
    const before = first.current;
    first.current = records[0]?.id ?? null;
    if (!follow || before === null || box.current.scrollTop <= row) return;
    const index = records.findIndex((record) => record.id === before);
    if (index > 0) box.current.scrollTop += positions.top(index);
  }, [records]);

  const from = Math.max(0, positions.at(view.from - HEAD) - OVERSCAN);
  const to = Math.min(records.length, positions.at(view.from + view.height) + OVERSCAN);
  const near = to >= records.length - 40;
  useEffect(() => { if (near && onEnd) onEnd(); }, [near, records]);

  // Scrolls the selected row into view.
  const latest = useLatest({ positions, records });
  useEffect(() => {
    const index = selected ? latest.current.records.findIndex((record) => record.id === selected) : -1;
    if (index < 0) return;
    const top = latest.current.positions.top(index);
    const viewport = box.current;
    if (top < viewport.scrollTop) viewport.scrollTop = top;
    else if (top + row + HEAD > viewport.scrollTop + viewport.clientHeight) viewport.scrollTop = top + row + HEAD - viewport.clientHeight;
  }, [selected]);

  const value = (record, field, text, shown) =>
    text === "" || text === undefined ? html`<span role="gridcell" class="cell"></span>` :
      html`<span role="gridcell" class="cell"><button type="button" tabindex="-1" class="value" onClick=${(event) => valueMenu(event, field, text)}>${shown ?? text}</button></span>`;
  const onRow = (event, record) => {
    if (event.target.closest("button") || String(getSelection()).length) return;
    onSelect(record.id);
    onToggle(record.id);
  };
  const onSelection = (event) => {
    const text = String(getSelection()).trim();
    if (text && text.length <= 200 && event.target.closest?.(".message, .detail-message")) textMenu(event, text);
  };

  const rows = [];
  let selectedRendered = false;
  for (let index = from; index < to; index += 1) {
    const record = records[index];
    const top = positions.top(index);
    if (record.gap) {
      rows.push(html`<div key=${record.id} role="row" aria-rowindex=${index + 2} class="row gap" style=${{ top: `${top}px` }}><span role="gridcell"><${Icon} name="alert" /> ${record.missing === null ? "Records" : plural(record.missing, "record")} may be missing here: the connection was interrupted, and the server can no longer stream them. Stop the live tail and search to see them.</span></div>`);
      continue;
    }
    const isOpen = open.has(record.id);
    selectedRendered ||= record.id === selected;
    rows.push(html`<div key=${record.id} id=${`row-${record.id}`} role="row" aria-rowindex=${index + 2} aria-selected=${record.id === selected}
        class="row ${severityClass(record.severity_text)} ${isOpen ? "is-open" : ""} ${record.id === selected ? "selected" : ""}"
        style=${{ top: `${top}px` }} onClick=${(event) => onRow(event, record)}>
      <span role="gridcell" class="cell toggle"><button type="button" tabindex="-1" aria-expanded=${isOpen} aria-label=${isOpen ? "Collapse record" : "Expand record"} onClick=${() => { onSelect(record.id); onToggle(record.id); }}><${Icon} name=${isOpen ? "down" : "right"} /></button></span>
      <span role="gridcell" class="cell time"><button type="button" tabindex="-1" class="value" onClick=${(event) => timeMenu(event, record)}>${rowTime(record.ts, zone, withDate)}</button></span>
      <span role="gridcell" class="cell severity">${record.severity_text && html`<button type="button" tabindex="-1" class="value" onClick=${(event) => valueMenu(event, "severity", record.severity_text)}>${record.severity_text === "UNSPECIFIED" ? html`<span title="No severity">–</span>` : record.severity_text}</button>`}</span>
      ${value(record, "service", record.service)}
      ${columns.map((name) => value(record, name, attribute(record, name)))}
      <span role="gridcell" class="cell message"><bdi>${highlighted(oneLine(record.message), highlight)}</bdi></span>
    </div>`);
    if (isOpen) {
      rows.push(html`<${ExpandedRow} key=${`open-${record.id}`} id=${record.id} top=${top + row} onHeight=${onHeight}>${detail(record)}<//>`);
    }
  }

  return html`<div class="table-box">
    ${head}
    <div class="table" ref=${box} onScroll=${measure} onMouseUp=${onSelection}>
      <div class="grid" role="grid" aria-label=${label} aria-rowcount=${records.length + 1} aria-activedescendant=${selectedRendered ? `row-${selected}` : undefined} tabindex="0"
          style=${{ "--columns": columns.length ? `repeat(${columns.length}, minmax(80px, 150px))` : "" }} onKeyDown=${(event) => keys(event, view.height)}>
        <div class="row head" role="row" aria-rowindex="1">
          <span role="columnheader"><span class="hidden">Expand</span></span>
          <span role="columnheader">Time</span><span role="columnheader">Severity</span><span role="columnheader">Service</span>
          ${columns.map((name) => html`<span role="columnheader" class="chosen" key=${name}><span class="name" title=${name}>${name}</span><${IconButton} icon="close" label=${`Remove column ${name}`} onClick=${() => onColumn(name)} /></span>`)}
          <span role="columnheader">Message</span>
        </div>
        <div class="canvas" role=${rows.length ? "rowgroup" : undefined} style=${{ height: `${positions.height}px` }}>${rows}</div>
      </div>
      ${bottom}
    </div>
  </div>`;
}
