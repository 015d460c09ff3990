// Dead letters: records that the database rejected. They can be replayed or deleted.

import { get, post } from "./api.js";
import { stamp } from "./time.js";
import { count, Dialog, html, Icon, plural, showToast, useEffect, useState } from "./components.js";

const LIMIT = 50;
const RETRY_MS = 3000;

export function DeadLetters({ total, zone, onFailure }) {
  const [view, setView] = useState({ deadLetters: null, more: false, loadError: null, error: null, busy: false });
  const [confirming, setConfirming] = useState(false);
  const [revision, setRevision] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    get("dead-letters", { limit: LIMIT }, abort.signal).then(
      (found) => abort.signal.aborted || setView((view) => ({ ...view, deadLetters: found.dead_letters, more: found.more, loadError: null, busy: false })),
      (loadError) => {
        if (abort.signal.aborted) return;
        setView((view) => ({ ...view, loadError, busy: false }));
        timer = setTimeout(() => setRevision((revision) => revision + 1), RETRY_MS);
      },
    );
    return () => { abort.abort(); clearTimeout(timer); };
  }, [total, revision]);
  const run = async (action, parameters, summarize) => {
    setView((view) => ({ ...view, busy: true, error: null }));
    try {
      showToast(summarize(await post(`dead-letters/${action}`, parameters)));
    } catch (error) {
      setView((view) => ({ ...view, error }));
    }
    setRevision((revision) => revision + 1);
  };
  const replay = (selection) => run("replay", selection, ({ replayed, failed, more }) =>
    `${plural(replayed, "record")} stored${failed.length ? `, ${count(failed.length)} rejected again` : ""}${more ? "; more remain" : ""}`);
  const purge = () => {
    setConfirming(false);
    run("purge", { older_than: "0s" }, ({ purged }) => `${plural(purged, "dead letter")} deleted`);
  };
  const { deadLetters, more, busy } = view;
  const error = view.error ?? view.loadError;
  return html`<section class="dead-letters" aria-label="Dead letters">
    <header><h2>Dead letters</h2><span class="muted">${deadLetters ? (more ? `first ${deadLetters.length}` : plural(deadLetters.length, "record")) : ""}</span><span class="spacer"></span>
      <button type="button" disabled=${busy || !deadLetters?.length} onClick=${() => replay({ all: true })}><${Icon} name="refresh" />Replay all</button>
      <button type="button" disabled=${busy || !deadLetters?.length} onClick=${() => setConfirming(true)}><${Icon} name="close" />Delete all</button></header>
    ${error && html`<p class="problem" role="alert"><${Icon} name="alert" />${error.message} ${error.kind === "token" && html`<button type="button" onClick=${() => onFailure(error)}><${Icon} name="key" />Enter an access token</button>`}</p>`}
    ${deadLetters?.length === 0 && html`<p class="muted">No dead letters. The database accepted every record.</p>`}
    ${deadLetters?.length > 0 && html`<div class="scroll" tabindex="0" role="group" aria-label="List of dead letters"><table><thead><tr><th scope="col">ID</th><th scope="col">Time</th><th scope="col">Reason</th><th scope="col">Record</th><th scope="col"><span class="hidden">Replay</span></th></tr></thead>
      <tbody>${deadLetters.map((letter) => html`<tr key=${letter.id}><td>${letter.id}</td><td>${stamp(Date.parse(letter.at), zone)}</td><td class="reason">${letter.sqlstate} ${letter.reason}</td><td><code>${(letter.raw ?? JSON.stringify(letter.record)).slice(0, 400)}</code></td>
        <td><button type="button" disabled=${busy} aria-label=${`Replay record ${letter.id}`} onClick=${() => replay({ id: letter.id })}><${Icon} name="refresh" />Replay</button></td></tr>`)}</tbody></table></div>`}
    ${confirming && html`<${Dialog} title="Delete all dead letters?" onClose=${() => setConfirming(false)}><p>These records are not stored anywhere else. Deleting them cannot be undone.</p>
      <footer><button type="button" onClick=${() => setConfirming(false)}>Cancel</button><button type="button" class="danger" onClick=${purge}>Delete all</button></footer><//>`}
  </section>`;
}
