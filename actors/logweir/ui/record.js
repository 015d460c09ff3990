// Record detail: all fields and their actions. Values are rendered as text, never as markup.

import { copy, html, Icon, IconButton, severityClass } from "./components.js";
import { fullTime } from "./time.js";

const LINE_MAX = 600;
const MARKS_MAX = 200;

/** Returns a message as one line: truncated, with line breaks shown as a symbol. */
export const oneLine = (text) => (text.length > LINE_MAX ? `${text.slice(0, LINE_MAX)}…` : text).replace(/\r?\n/g, " ⏎ ").replace(/\t/g, " ");

/** Returns the text with search matches highlighted. `highlight` is a regular expression with one group, or null. */
export function highlighted(text, highlight) {
  if (!highlight || !text) return text;
  const parts = text.split(highlight, MARKS_MAX * 2);
  const shown = parts.join("").length;
  if (shown < text.length) parts.push(text.slice(shown));
  return parts.map((part, nth) => (nth % 2 ? html`<mark>${part}</mark>` : part));
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
export const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** Returns all attributes as pairs of dotted name and value. */
export function flat(attributes, prefix = "", into = [], depth = 0) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (isObject(value) && Object.keys(value).length && depth < 16) flat(value, `${prefix}${name}.`, into, depth + 1);
    else into.push([prefix + name, value]);
  }
  return into;
}

/** Returns a field's value as text, or `undefined`. */
export function attribute(record, name) {
  if (["service", "host", "message"].includes(name)) return record[name];
  const found = flat(record.attributes).find(([known]) => known === name);
  return found === undefined ? undefined : asText(found[1]);
}

export function Detail({ record, zone, highlight, columns, onInclude, onExclude, onColumn, onContext, link }) {
  const fields = [["service", record.service], ["host", record.host], ...flat(record.attributes)].filter(([, value]) => value !== "");
  const line = (name, value) => {
    const text = asText(value);
    // No filter can express an empty or composite value.
    const filters = text !== "" && (typeof value !== "object" || value === null);
    return html`<div class="field" key=${name}>
      <dt>${name}</dt><dd><bdi>${highlighted(text, highlight)}</bdi></dd>
      <dd class="field-actions">${filters && html`<${IconButton} icon="plus" label=${`Filter for ${name} = ${text}`} onClick=${() => onInclude(name, value)} />
        <${IconButton} icon="minus" label=${`Exclude ${name} = ${text}`} onClick=${() => onExclude(name, value)} />`}
        ${name !== "service" && name !== "severity" && html`<button type="button" class="icon-button" aria-pressed=${columns.includes(name)} aria-label=${`Show ${name} as a column`} title=${`Show ${name} as a column`} onClick=${() => onColumn(name)}><${Icon} name="columns" /></button>`}</dd></div>`;
  };
  const hasId = /^-?\d+$/.test(record.id);
  return html`<article class="detail ${severityClass(record.severity_text)}">
    <div class="detail-actions">
      <button type="button" disabled=${!hasId} onClick=${onContext}><${Icon} name="context" />Context</button>
      <button type="button" onClick=${() => copy(JSON.stringify(record, null, 2), "Record")}><${Icon} name="copy" />Copy JSON</button>
      <button type="button" disabled=${!hasId} onClick=${() => copy(link, "Link")}><${Icon} name="link" />Copy link</button>
    </div>
    <pre class="detail-message"><bdi>${highlighted(record.message, highlight)}</bdi></pre>
    <dl>
      <div class="field"><dt>time</dt><dd>${fullTime(record.ts, zone)}</dd></div>
      ${record.severity_text && line("severity", record.severity_text)}
      ${fields.map(([name, value]) => line(name, value))}
      <div class="field"><dt>id</dt><dd class="muted">${record.id}</dd></div>
    </dl>
  </article>`;
}
