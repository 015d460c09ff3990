// Search state of the explorer: first page, further pages, and counts over the whole range.

import { get, serverNow } from "./api.js";
import { resolve } from "./time.js";
import { useCallback, useEffect, useLatest, useRef, useState } from "./components.js";

/** Records of the first page. */
export const PAGE = 200;
/** Most records held in the browser; beyond it, the user narrows the time range. */
export const RECORDS_MAX = 20000;
const BUCKETS = 120;
const STEPS_S = [0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 2592000];

/** Returns the range in milliseconds on the server's clock; it starts in 1970 at the earliest. */
export function rangeOf(state) {
  const now = serverNow();
  return { start: Math.max(0, Math.floor(resolve(state.start, now))), end: Math.max(1, Math.ceil(resolve(state.end, now))) };
}

/** Returns a step that yields at most `BUCKETS` buckets. From one hour up it is whole minutes, which the server answers from its counters. */
export function stepOf({ start, end }) {
  const least = (end - start) / 1000 / BUCKETS;
  const step = STEPS_S.find((step) => step >= least && (end - start < 3600e3 || step >= 60)) ?? Math.ceil(least / 86400) * 86400;
  return step < 1 ? `${step * 1000}ms` : `${step}s`;
}

const EMPTY = { records: null, hits: null, range: null, query: "", older: null, source: null, tookMs: null, error: null, hitsError: null, busy: true, paging: false, full: false };

/** Returns where the records of both pages come from. */
const sum = (one, other) => ({ ...(one.partial ? one : other), database: one.database + other.database, cache: one.cache + other.cache });

/** Searches when the state or `run` changes. The previous result stays visible until the response arrives. */
export function useSearch(state, run) {
  const [view, setView] = useState(EMPTY);
  const latest = useLatest(view);
  const current = useRef(null);
  const requested = useRef(null); // cursor in flight, so that each page is requested once
  const { query, start, end, by, live } = state;

  useEffect(() => {
    if (live) return setView({ ...EMPTY, busy: false });
    const abort = new AbortController();
    current.current = abort;
    requested.current = null;
    const range = rangeOf(state);
    const update = (patch) => abort.signal.aborted || setView((view) => ({ ...view, ...patch }));
    update({ busy: true, paging: false });
    get("query", { query, ...range, limit: PAGE }, abort.signal).then(
      (page) => update({
        records: page.records, older: page.cursor.older, source: page.source, tookMs: page.took_ms, range, query, full: false, error: null, busy: false,
      }),
      (error) => error.name === "AbortError" || update({ error, busy: false, range, query, ...(error.kind === "query" ? { records: [], older: null } : {}) }),
    );
    get("hits", { query, ...range, by, step: stepOf(range) }, abort.signal).then(
      (hits) => update({ hits, hitsError: null }),
      (hitsError) => hitsError.name === "AbortError" || update({ hits: null, hitsError }),
    );
    return () => abort.abort();
  }, [query, start, end, by, live, run]);

  const more = useCallback(() => {
    const { older, busy, records, range, query } = latest.current;
    const { signal } = current.current ?? {};
    if (!older || older === requested.current || busy || !records) return;
    if (records.length >= RECORDS_MAX) return setView((view) => ({ ...view, full: true }));
    requested.current = older;
    const update = (patch) => signal.aborted || setView((view) => ({ ...view, ...patch(view) }));
    update(() => ({ paging: true }));
    get("query", { query, ...range, limit: PAGE * 5, cursor: older }, signal).then(
      (page) => update((view) => ({ records: view.records.concat(page.records), older: page.cursor.older, source: sum(view.source, page.source), paging: false, error: null })),
      (error) => {
        if (error.name === "AbortError") return;
        requested.current = null;
        update(() => ({ error, paging: false }));
      },
    );
  }, []);

  return { ...view, more };
}
