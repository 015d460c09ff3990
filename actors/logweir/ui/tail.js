// Live tail: streams records as they become durable, keeps a bounded number, and counts what it leaves out.

import { events, Failure } from "./api.js";
import { useEffect, useReducer, useRef } from "./vendor/hooks.js";

const SHOWN_MAX = 2000;
const HELD_MAX = 5000;
const RETRY_MS = [500, 1000, 2000, 5000];

const START = { records: [], held: [], received: 0, dropped: 0, skipped: 0, gaps: 0, paused: false, status: "connecting", error: null, perSecond: 0 };

/** Returns the newest `most` of both lists, newest first, and the number cut off. */
const newest = (fresh, old, most) => {
  const all = fresh.concat(old);
  return [all.slice(0, most), Math.max(0, all.length - most)];
};

/** Pure reducer. `skipped` counts records that arrived while paused and exceeded the buffer. */
export function step(tail, action) {
  switch (action.type) {
    case "reset": return START;
    case "open": return { ...tail, status: "open", error: null };
    case "lost": return { ...tail, status: "lost", error: action.error, perSecond: 0 };
    case "rejected": return { ...tail, status: "rejected", error: action.error, perSecond: 0 };
    case "rate": return tail.perSecond === action.perSecond ? tail : { ...tail, perSecond: action.perSecond };
    case "clear": return { ...tail, records: [], held: [] };
    case "pause": return { ...tail, paused: true };
    case "resume": return { ...tail, paused: false, records: newest(tail.held, tail.records, SHOWN_MAX)[0], held: [], skipped: 0 };
    case "batch": {
      const fresh = action.records.toReversed();
      const sums = { received: tail.received + action.received, dropped: tail.dropped + action.dropped, gaps: tail.gaps + action.gaps };
      if (!tail.paused) return { ...tail, ...sums, records: newest(fresh, tail.records, SHOWN_MAX)[0] };
      const [held, over] = newest(fresh, tail.held, HELD_MAX);
      return { ...tail, ...sums, held, skipped: tail.skipped + over + action.over };
    }
    default: return tail;
  }
}

/** Streams while `on`; reconnects automatically from the last record received. */
export function useTail(query, on) {
  const [tail, dispatch] = useReducer(step, START);
  const lastId = useRef("");

  useEffect(() => {
    if (!on) return undefined;
    const abort = new AbortController();
    const { signal } = abort;
    const emptyBatch = () => ({ records: [], received: 0, dropped: 0, gaps: 0, over: 0 });
    let waiting = emptyBatch();
    let rate = 0;
    let serial = 0;
    lastId.current = "";
    dispatch({ type: "reset" });

    // Batches records so that they render together. A timer, because background tabs get no animation frames.
    let timer = 0;
    const flush = () => {
      timer = 0;
      dispatch({ type: "batch", ...waiting });
      waiting = emptyBatch();
    };
    const scheduleFlush = () => { timer ||= setTimeout(flush, 50); };
    const rates = setInterval(() => { dispatch({ type: "rate", perSecond: rate }); rate = 0; }, 1000);

    const onEvent = (event, data, id) => {
      if (id) lastId.current = id;
      if (!event) return;
      const value = JSON.parse(data);
      if (event === "record") {
        // A record has no id until the database has assigned its lane; rows still need a key.
        value.id ??= `new-${(serial += 1)}`;
        waiting.records.push(value);
        waiting.received += 1;
        rate += 1;
        if (waiting.records.length > HELD_MAX) {
          waiting.records.shift();
          waiting.over += 1;
        }
      } else if (event === "dropped") waiting.dropped += value.dropped;
      else if (event === "gap") {
        waiting.gaps += 1;
        waiting.records.push({ gap: true, id: `gap-${(serial += 1)}`, missing: value.missing ?? null });
      } else return;
      scheduleFlush();
    };

    let attempts = 0;
    const connect = async () => {
      let lost = null;
      try {
        await events("tail", { query }, { signal, lastEventId: lastId.current, onEvent, onOpen: () => { attempts = 0; dispatch({ type: "open" }); } });
      } catch (error) {
        if (signal.aborted) return;
        // The server no longer recognizes the resume token: start from now, and show a gap.
        if (error.status === 400 && lastId.current) {
          lastId.current = "";
          onEvent("gap", "{}", "");
          return connect();
        }
        const failure = error instanceof Failure ? error : new Failure("unreachable", "the connection was interrupted");
        if (["query", "token", "forbidden", "missing"].includes(failure.kind)) return dispatch({ type: "rejected", error: failure });
        lost = failure;
      }
      if (signal.aborted) return;
      dispatch({ type: "lost", error: lost });
      const delay = RETRY_MS[Math.min(attempts++, RETRY_MS.length - 1)];
      retry = setTimeout(connect, Math.max(delay, (lost?.retryAfter ?? 0) * 1000));
    };
    let retry = setTimeout(connect, 0);
    return () => {
      abort.abort();
      clearTimeout(retry);
      clearTimeout(timer);
      clearInterval(rates);
    };
  }, [query, on]);

  return [tail, dispatch];
}
