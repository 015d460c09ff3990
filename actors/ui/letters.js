// Dead letters: the records that the database would not take. They can be tried again, or let go.

import { get, post } from "./api.js";
import { stamp } from "./time.js";
import { count, Dialog, html, Icon, plural, say, useEffect, useState } from "./view.js";

const MOST = 50;
const RETRY_MS = 3000;

export function Letters({ known, zone, onFailure }) {
  const [view, setView] = useState({ letters: null, more: false, unread: null, error: null, busy: false });
  const [asking, setAsking] = useState(false);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    get("dead-letters", { limit: MOST }, abort.signal).then(
      (found) => abort.signal.aborted || setView((view) => ({ ...view, letters: found.dead_letters, more: found.more, unread: null, busy: false })),
      (unread) => {
        if (abort.signal.aborted) return;
        setView((view) => ({ ...view, unread, busy: false }));
        timer = setTimeout(() => setTurn((turn) => turn + 1), RETRY_MS);
      },
    );
    return () => { abort.abort(); clearTimeout(timer); };
  }, [known, turn]);
  const act = async (what, parameters, told) => {
    setView((view) => ({ ...view, busy: true, error: null }));
    try {
      say(told(await post(`dead-letters/${what}`, parameters)));
    } catch (error) {
      setView((view) => ({ ...view, error }));
    }
    setTurn((turn) => turn + 1);
  };
  const replay = (which) => act("replay", which, ({ replayed, failed, more }) =>
    `${plural(replayed, "record")} stored${failed.length ? `, ${count(failed.length)} refused again` : ""}${more ? "; there are more" : ""}`);
  const purge = () => {
    setAsking(false);
    act("purge", { older_than: "0s" }, ({ purged }) => `${plural(purged, "dead letter")} deleted`);
  };
  const { letters, more, busy } = view;
  const error = view.error ?? view.unread;
  return html`<section class="letters" aria-label="Dead letters">
    <header><h2>Dead letters</h2><span class="soft">${letters ? (more ? `the first ${letters.length}` : plural(letters.length, "record")) : ""}</span><span class="grow"></span>
      <button type="button" disabled=${busy || !letters?.length} onClick=${() => replay({ all: true })}><${Icon} name="refresh" />Try all again</button>
      <button type="button" disabled=${busy || !letters?.length} onClick=${() => setAsking(true)}><${Icon} name="close" />Delete all</button></header>
    ${error && html`<p class="problem" role="alert"><${Icon} name="alert" />${error.message} ${error.kind === "token" && html`<button type="button" onClick=${() => onFailure(error)}><${Icon} name="key" />Give a token</button>`}</p>`}
    ${letters?.length === 0 && html`<p class="soft">None: the database took every record.</p>`}
    ${letters?.length > 0 && html`<div class="scroll" tabindex="0" role="group" aria-label="List of dead letters"><table><thead><tr><th scope="col">Id</th><th scope="col">Since</th><th scope="col">Reason</th><th scope="col">Record</th><th scope="col"><span class="hidden">Try again</span></th></tr></thead>
      <tbody>${letters.map((letter) => html`<tr key=${letter.id}><td>${letter.id}</td><td>${stamp(Date.parse(letter.at), zone)}</td><td class="reason">${letter.sqlstate} ${letter.reason}</td><td><code>${(typeof letter.raw === "string" ? letter.raw : JSON.stringify(letter.raw)).slice(0, 400)}</code></td>
        <td><button type="button" disabled=${busy} aria-label=${`Try record ${letter.id} again`} onClick=${() => replay({ id: letter.id })}><${Icon} name="refresh" />Try again</button></td></tr>`)}</tbody></table></div>`}
    ${asking && html`<${Dialog} title="Delete all dead letters?" onClose=${() => setAsking(false)}><p>These records are in no other place. What is deleted cannot be brought back.</p>
      <footer><button type="button" onClick=${() => setAsking(false)}>Keep them</button><button type="button" class="danger" onClick=${purge}>Delete</button></footer><//>`}
  </section>`;
}
