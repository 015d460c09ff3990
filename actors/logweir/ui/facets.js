// Facets: the most frequent values of each field among the records that match, with counts.

import { get, countsError } from "./api.js";
import { count, html, Icon, IconButton, plural, severityClass, short, useEffect, useState } from "./components.js";

const DEFAULT_FIELDS = ["service", "severity", "host"];
const VALUES = 8;
const VALUES_EXPANDED = 50;

export function Facets({ query, range, chosen, columns, onInclude, onExclude, onFacet, onColumn }) {
  const [view, setView] = useState({ facets: null, fields: null, error: null, sampled: null });
  const [expanded, setExpanded] = useState(() => new Set());
  const [find, setFind] = useState("");
  const names = [...DEFAULT_FIELDS, ...chosen.filter((name) => !DEFAULT_FIELDS.includes(name))];
  const limit = expanded.size ? VALUES_EXPANDED : VALUES;

  useEffect(() => {
    if (!range) return undefined;
    const abort = new AbortController();
    const update = (patch) => abort.signal.aborted || setView((view) => ({ ...view, ...patch }));
    get("facets", { query, ...range, fields: names.join(","), limit }, abort.signal).then(
      ({ facets, sampled }) => update({ facets, sampled, error: null }),
      (error) => error.name === "AbortError" || update({ error }),
    );
    return () => abort.abort();
  }, [query, range, names.join(","), limit]);
  useEffect(() => {
    if (!range) return undefined;
    const abort = new AbortController();
    get("fields", range, abort.signal).then(
      ({ fields }) => abort.signal.aborted || setView((view) => ({ ...view, fields })),
      () => {}, // the request above reports the same error
    );
    return () => abort.abort();
  }, [range]);

  const facet = (name) => {
    const known = view.facets?.find((facet) => facet.field === name);
    const values = known?.values ?? [];
    const most = Math.max(1, ...values.map((value) => value.count));
    const shown = expanded.has(name) ? values : values.slice(0, VALUES);
    const more = known?.more || values.length > shown.length;
    return html`<section class="facet" key=${name} aria-label=${name}>
      <h3>${name}${!DEFAULT_FIELDS.includes(name) && html`<${IconButton} icon="columns" label=${columns.includes(name) ? `Remove column ${name}` : `Show ${name} as a column`} aria-pressed=${columns.includes(name)} onClick=${() => onColumn(name)} /><${IconButton} icon="close" label=${`Remove facet ${name}`} onClick=${() => onFacet(name)} />`}</h3>
      ${known && !values.length && html`<p class="muted">No values</p>`}
      <ul>${shown.map(({ value, count: records }) => html`<li key=${value} class=${name === "severity" ? severityClass(value) : ""}>
        <span class="share" style=${{ width: `${(records / most) * 100}%` }}></span>
        <button type="button" class="facet-value" title=${`Filter for ${name} = ${value}`} onClick=${() => onInclude(name, value)}><bdi>${value === "" ? "(none)" : value}</bdi></button>
        <span class="facet-count" title=${plural(records, "record")}>${short(records)}</span>
        <${IconButton} icon="minus" label=${`Exclude ${name} = ${value}`} onClick=${() => onExclude(name, value)} />
      </li>`)}</ul>
      ${more && !expanded.has(name) && html`<button type="button" class="more" onClick=${() => setExpanded(new Set(expanded).add(name))}>Show more</button>`}
    </section>`;
  };

  const otherFields = (view.fields ?? []).filter(({ name }) => !names.includes(name) && name.toLowerCase().includes(find.toLowerCase()));
  return html`<div class="facets">
    ${view.error && html`<p class="problem"><${Icon} name="alert" />${countsError(view.error)}</p>`}
    ${view.sampled && html`<p class="muted">Counts are based on a sample of ${count(view.sampled)} records.</p>`}
    ${names.map(facet)}
    <section class="facet" aria-label="Other fields"><h3>Fields</h3>
      ${(view.fields?.length ?? 0) > 12 && html`<input type="search" aria-label="Find a field" placeholder="Find a field" value=${find} onInput=${(event) => setFind(event.target.value)} />`}
      ${view.fields && !otherFields.length && html`<p class="muted">${find ? "No matching fields" : "No other fields"}</p>`}
      <ul>${otherFields.slice(0, 60).map(({ name, count: records }) => html`<li key=${name}>
        <button type="button" class="facet-value" title=${`Show values of ${name}`} onClick=${() => onFacet(name)}><bdi>${name}</bdi></button>
        <span class="facet-count">${short(records)}</span>
        <${IconButton} icon="columns" label=${columns.includes(name) ? `Remove column ${name}` : `Show ${name} as a column`} aria-pressed=${columns.includes(name)} onClick=${() => onColumn(name)} /></li>`)}</ul>
      ${otherFields.length > 60 && html`<p class="muted">${otherFields.length - 60} more. Search by name to see them.</p>`}
    </section>
  </div>`;
}
