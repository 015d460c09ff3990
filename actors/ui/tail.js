// Live tail: records as they become durable, at most so many kept, what is left out counted.

import { events, Failure } from "./api.js";
import { useEffect, useReducer, useRef } from "./vendor/hooks.js";

const SHOWN_MAX = 2000;
const HELD_MAX = 5000;
const RETRY_MS = [500, 1000, 2000, 5000];

const START = { records: [], held: [], received: 0, dropped: 0, skipped: 0, gaps: 0, paused: false, status: "connecting", error: null, perSecond: 0 };

/** The newest `most` of new and old, newest first; and how many were cut off. */
const newest = (fresh, old, most) => {
  const all = fresh.concat(old);
  return [all.slice(0, most), Math.max(0, all.length - most)];
};

/** Pure, so that each step can be followed. `skipped` are those that came while paused and found no room. */
export function step(tail, action) {
  switch (action.type) {
    case "begin": return START;
    case "open": return { ...tail, status: "open", error: null };
    case "lost": return { ...tail, status: "lost", error: action.error, perSecond: 0 };
    case "refused": return { ...tail, status: "refused", error: action.error, perSecond: 0 };
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

/** Listens while `on`; connects again by itself, from the last record that came. */
export function useTail(query, on) {
  const [tail, act] = useReducer(step, START);
  const lastId = useRef("");

  useEffect(() => {
    if (!on) return undefined;
    const abort = new AbortController();
    const { signal } = abort;
    const nothing = () => ({ records: [], received: 0, dropped: 0, gaps: 0, over: 0 });
    let waiting = nothing();
    let rate = 0;
    let serial = 0;
    lastId.current = "";
    act({ type: "begin" });

    // What comes within a frame is drawn once. A page in the background has no frames: hence the timer.
    let timer = 0;
    const flush = () => {
      timer = 0;
      act({ type: "batch", ...waiting });
      waiting = nothing();
    };
    const later = () => { timer ||= setTimeout(flush, 50); };
    const rates = setInterval(() => { act({ type: "rate", perSecond: rate }); rate = 0; }, 1000);

    const onEvent = (event, data, id) => {
      if (id) lastId.current = id;
      if (!event) return;
      const value = JSON.parse(data);
      if (event === "record") {
        // Until the database has been asked once, a new record has no number yet: rows are told apart all the same.
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
      later();
    };

    let tries = 0;
    const listen = async () => {
      let lost = null;
      try {
        await events("tail", { query }, { signal, lastEventId: lastId.current, onEvent, onOpen: () => { tries = 0; act({ type: "open" }); } });
      } catch (error) {
        if (signal.aborted) return;
        // A token that the server does not know any more: from now on, then, and that is said.
        if (error.status === 400 && lastId.current) {
          lastId.current = "";
          onEvent("gap", "{}", "");
          return listen();
        }
        const known = error instanceof Failure ? error : new Failure("away", "the connection broke off");
        if (["query", "token", "forbidden", "missing"].includes(known.kind)) return act({ type: "refused", error: known });
        lost = known;
      }
      if (signal.aborted) return;
      act({ type: "lost", error: lost });
      const pause = RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)];
      retry = setTimeout(listen, Math.max(pause, (lost?.retryAfter ?? 0) * 1000));
    };
    let retry = setTimeout(listen, 0);
    return () => {
      abort.abort();
      clearTimeout(retry);
      clearTimeout(timer);
      clearInterval(rates);
    };
  }, [query, on]);

  return [tail, act];
}
