// Context: records of the same service and host before and after one record.

import { get } from "./api.js";
import { Dialog, html, Icon, PartialNote, plural, severityClass, useEffect, useRef, useState } from "./components.js";
import { highlighted, oneLine } from "./record.js";
import { fullTime, rowTime } from "./time.js";

const STEP = 10;
const SIZE_MAX = 500;

export function Context({ at, zone, highlight, onClose, detail }) {
  const cut = at.indexOf("~");
  const [id, ts] = [at.slice(0, cut), at.slice(cut + 1)];
  const [size, setSize] = useState({ before: STEP, after: STEP });
  const [view, setView] = useState({ found: null, error: null, busy: true });
  const [open, setOpen] = useState(() => new Set());
  const here = useRef();
  useEffect(() => {
    const abort = new AbortController();
    setView((view) => ({ ...view, busy: true }));
    get("context", { id, ts, ...size }, abort.signal).then(
      (found) => setView({ found, error: null, busy: false }),
      (error) => error.name === "AbortError" || setView((view) => ({ ...view, error, busy: false })),
    );
    return () => abort.abort();
  }, [at, size]);
  useEffect(() => { here.current?.scrollIntoView({ block: "center" }); }, [Boolean(view.found)]);

  const { found, error, busy } = view;
  const toggle = (record) => setOpen((open) => {
    const next = new Set(open);
    if (!next.delete(record.id)) next.add(record.id);
    return next;
  });
  const line = (record, isHere) => html`<li key=${record.id} ref=${isHere ? here : undefined} class="${severityClass(record.severity_text)} ${isHere ? "here" : ""}" aria-current=${isHere ? "true" : undefined}>
    <button type="button" class="context-line" aria-expanded=${open.has(record.id)} onClick=${() => toggle(record)}>
      <span class="time">${rowTime(record.ts, zone, false)}</span><span class="severity">${record.severity_text}</span><span class="message"><bdi>${highlighted(oneLine(record.message), highlight)}</bdi></span></button>
    ${open.has(record.id) && detail(record)}</li>`;
  const more = (side, label, loaded) => loaded >= size[side] && size[side] < SIZE_MAX && html`<button type="button" class="more" disabled=${busy} onClick=${() => setSize({ ...size, [side]: size[side] + STEP * 2 })}>${label}</button>`;
  const title = found ? `${found.record.service || "(no service)"}${found.record.host ? ` on ${found.record.host}` : ""} around ${fullTime(found.record.ts, zone)}` : "Context";
  return html`<${Dialog} title=${title} className="context" onClose=${onClose}>
    ${error && html`<p class="problem"><${Icon} name="alert" />${error.message}</p>`}
    ${!found && busy && html`<p class="muted">Loading…</p>`}
    ${found?.partial && html`<${PartialNote} ...${found} />`}
    ${found && html`${more("before", "Load earlier", found.before.length)}
      <ol>${found.before.map((record) => line(record, false))}${line(found.record, true)}${found.after.map((record) => line(record, false))}</ol>
      ${more("after", "Load later", found.after.length)}
      <p class="muted">${plural(found.before.length, "record")} before, ${found.after.length} after.</p>`}
  <//>`;
}
