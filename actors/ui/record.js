// One record: what it holds, and what can be done with each of its values. All of it is text, never markup.

import { copy, html, Icon, IconButton, severityClass } from "./view.js";
import { fullTime } from "./time.js";

const LINE_MAX = 600;
const MARKS_MAX = 200;

/** A message in one line: cut where nobody would read on, breaks as a sign. */
export const oneLine = (text) => (text.length > LINE_MAX ? `${text.slice(0, LINE_MAX)}…` : text).replace(/\r?\n/g, " ⏎ ").replace(/\t/g, " ");

/** The text with what was searched for marked. `words` is a regular expression with one group, or null. */
export function marked(text, words) {
  if (!words || !text) return text;
  const parts = text.split(words, MARKS_MAX * 2);
  const shown = parts.join("").length;
  if (shown < text.length) parts.push(text.slice(shown));
  return parts.map((part, nth) => (nth % 2 ? html`<mark>${part}</mark>` : part));
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
export const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** Every attribute under its dotted name. */
export function flat(attributes, prefix = "", into = [], depth = 0) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (isObject(value) && Object.keys(value).length && depth < 16) flat(value, `${prefix}${name}.`, into, depth + 1);
    else into.push([prefix + name, value]);
  }
  return into;
}

/** A field's value as text; `undefined` where it is not there. */
export function attribute(record, name) {
  if (["service", "host", "message"].includes(name)) return record[name];
  const found = flat(record.attributes).find(([known]) => known === name);
  return found === undefined ? undefined : asText(found[1]);
}

export function Detail({ record, zone, words, columns, onInclude, onExclude, onColumn, onContext, link }) {
  const fields = [["service", record.service], ["host", record.host], ...flat(record.attributes)].filter(([, value]) => value !== "");
  const line = (name, value) => {
    const text = asText(value);
    // An empty or composed value has no text that a filter could name.
    const filters = text !== "" && (typeof value !== "object" || value === null);
    return html`<div class="field" key=${name}>
      <dt>${name}</dt><dd><bdi>${marked(text, words)}</bdi></dd>
      <dd class="field-acts">${filters && html`<${IconButton} icon="plus" label=${`Only ${name} = ${text}`} onClick=${() => onInclude(name, value)} />
        <${IconButton} icon="minus" label=${`Without ${name} = ${text}`} onClick=${() => onExclude(name, value)} />`}
        ${name !== "service" && name !== "severity" && html`<button type="button" class="icon-button" aria-pressed=${columns.includes(name)} aria-label=${`Show ${name} as a column`} title=${`Show ${name} as a column`} onClick=${() => onColumn(name)}><${Icon} name="columns" /></button>`}</dd></div>`;
  };
  const hasId = /^-?\d+$/.test(record.id);
  return html`<article class="detail ${severityClass(record.severity_text)}">
    <div class="detail-acts">
      <button type="button" disabled=${!hasId} onClick=${onContext}><${Icon} name="context" />Context</button>
      <button type="button" onClick=${() => copy(JSON.stringify(record, null, 2), "Record")}><${Icon} name="copy" />Copy JSON</button>
      <button type="button" disabled=${!hasId} onClick=${() => copy(link, "Link")}><${Icon} name="link" />Copy link</button>
    </div>
    <pre class="detail-message"><bdi>${marked(record.message, words)}</bdi></pre>
    <dl>
      <div class="field"><dt>time</dt><dd>${fullTime(record.ts, zone)}</dd></div>
      ${record.severity_text && line("severity", record.severity_text)}
      ${fields.map(([name, value]) => line(name, value))}
      <div class="field"><dt>id</dt><dd class="soft">${record.id}</dd></div>
    </dl>
  </article>`;
}
