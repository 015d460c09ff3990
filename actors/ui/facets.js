// What values there are, and how many records have each: in the range, with what was filtered already.

import { get, uncounted } from "./api.js";
import { count, html, Icon, IconButton, plural, severityClass, short, useEffect, useState } from "./view.js";

const ALWAYS = ["service", "severity", "host"];
const VALUES = 8;
const VALUES_MORE = 50;

export function Facets({ query, range, chosen, columns, onInclude, onExclude, onFacet, onColumn }) {
  const [view, setView] = useState({ facets: null, fields: null, error: null, sampled: null });
  const [long, setLong] = useState(() => new Set());
  const [find, setFind] = useState("");
  const names = [...ALWAYS, ...chosen.filter((name) => !ALWAYS.includes(name))];
  const limit = long.size ? VALUES_MORE : VALUES;

  useEffect(() => {
    if (!range) return undefined;
    const abort = new AbortController();
    const put = (patch) => abort.signal.aborted || setView((view) => ({ ...view, ...patch }));
    get("facets", { query, ...range, fields: names.join(","), limit }, abort.signal).then(
      ({ facets, sampled }) => put({ facets, sampled, error: null }),
      (error) => error.name === "AbortError" || put({ error }),
    );
    return () => abort.abort();
  }, [query, range, names.join(","), limit]);
  useEffect(() => {
    if (!range) return undefined;
    const abort = new AbortController();
    get("fields", range, abort.signal).then(
      ({ fields }) => abort.signal.aborted || setView((view) => ({ ...view, fields })),
      () => {}, // the same trouble is told above
    );
    return () => abort.abort();
  }, [range]);

  const facet = (name) => {
    const known = view.facets?.find((facet) => facet.field === name);
    const values = known?.values ?? [];
    const most = Math.max(1, ...values.map((value) => value.count));
    const shown = long.has(name) ? values : values.slice(0, VALUES);
    const more = known?.more || values.length > shown.length;
    return html`<section class="facet" key=${name} aria-label=${name}>
      <h3>${name}${!ALWAYS.includes(name) && html`<${IconButton} icon="columns" label=${`${columns.includes(name) ? "Remove the column" : "Show as a column:"} ${name}`} aria-pressed=${columns.includes(name)} onClick=${() => onColumn(name)} /><${IconButton} icon="close" label=${`Close ${name}`} onClick=${() => onFacet(name)} />`}</h3>
      ${known && !values.length && html`<p class="soft">none</p>`}
      <ul>${shown.map(({ value, count: records }) => html`<li key=${value} class=${name === "severity" ? severityClass(value) : ""}>
        <span class="share" style=${{ width: `${(records / most) * 100}%` }}></span>
        <button type="button" class="facet-value" title=${`Only ${name} = ${value}`} onClick=${() => onInclude(name, value)}><bdi>${value === "" ? "(none)" : value}</bdi></button>
        <span class="facet-count" title=${plural(records, "record")}>${short(records)}</span>
        <${IconButton} icon="minus" label=${`Without ${name} = ${value}`} onClick=${() => onExclude(name, value)} />
      </li>`)}</ul>
      ${more && !long.has(name) && html`<button type="button" class="more" onClick=${() => setLong(new Set(long).add(name))}>More</button>`}
    </section>`;
  };

  const others = (view.fields ?? []).filter(({ name }) => !names.includes(name) && name.toLowerCase().includes(find.toLowerCase()));
  return html`<div class="facets">
    ${view.error && html`<p class="problem"><${Icon} name="alert" />${uncounted(view.error)}</p>`}
    ${view.sampled && html`<p class="soft">Counted among ${count(view.sampled)} of the records.</p>`}
    ${names.map(facet)}
    <section class="facet" aria-label="Other fields"><h3>Fields</h3>
      ${(view.fields?.length ?? 0) > 12 && html`<input type="search" aria-label="Find a field" placeholder="Find a field" value=${find} onInput=${(event) => setFind(event.target.value)} />`}
      ${view.fields && !others.length && html`<p class="soft">${find ? "none of this name" : "no other fields"}</p>`}
      <ul>${others.slice(0, 60).map(({ name, count: records }) => html`<li key=${name}>
        <button type="button" class="facet-value" title=${`Values of ${name}`} onClick=${() => onFacet(name)}><bdi>${name}</bdi></button>
        <span class="facet-count">${short(records)}</span>
        <${IconButton} icon="columns" label=${`${columns.includes(name) ? "Remove the column" : "Show as a column:"} ${name}`} aria-pressed=${columns.includes(name)} onClick=${() => onColumn(name)} /></li>`)}</ul>
      ${others.length > 60 && html`<p class="soft">and ${others.length - 60} more: find them by name</p>`}
    </section>
  </div>`;
}
