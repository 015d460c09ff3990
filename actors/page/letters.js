// Dead letters: the records that the database would not take. They can be tried again, or let go.

import { get, post } from "./api.js";
import { stamp } from "./time.js";
import { Dialog, html, Icon, plural, say, useEffect, useState } from "./view.js";

const MOST = 50;

export function Letters({ known, zone, onFailure }) {
  const [view, setView] = useState({ letters: null, error: null, busy: false });
  const [asking, setAsking] = useState(false);
  const look = async () => {
    try {
      const found = await get("dead-letters", { limit: MOST });
      setView({ letters: found.dead_letters ?? found.letters ?? [], error: null, busy: false });
    } catch (error) {
      setView((view) => ({ ...view, error, busy: false }));
    }
  };
  useEffect(() => { look(); }, [known]);
  const act = async (what, told) => {
    setView((view) => ({ ...view, busy: true, error: null }));
    try {
      const outcome = await post(`dead-letters/${what}`);
      say(told(outcome));
      await look();
    } catch (error) {
      setView((view) => ({ ...view, busy: false, error }));
    }
  };
  const replay = () => act("replay", (outcome) => `${plural(outcome.replayed ?? 0, "record")} stored, ${outcome.failed ?? outcome.remaining ?? 0} refused again`);
  const purge = () => { setAsking(false); act("purge", (outcome) => `${plural(outcome.purged ?? 0, "dead letter")} deleted`); };
  const { letters, error, busy } = view;
  return html`<section class="letters" aria-label="Dead letters">
    <header><h2>Dead letters</h2><span class="soft">${letters ? (letters.length === MOST ? `the first ${MOST}` : plural(letters.length, "record")) : ""}</span><span class="grow"></span>
      <button type="button" disabled=${busy || !letters?.length} onClick=${replay}><${Icon} name="refresh" />Try all again</button>
      <button type="button" disabled=${busy || !letters?.length} onClick=${() => setAsking(true)}><${Icon} name="close" />Delete all</button></header>
    ${error && html`<p class="problem" role="alert"><${Icon} name="alert" />${error.message} ${error.kind === "token" && html`<button type="button" onClick=${() => onFailure(error)}><${Icon} name="key" />Give a token</button>`}</p>`}
    ${letters?.length === 0 && html`<p class="soft">None: the database took every record.</p>`}
    ${letters?.length > 0 && html`<div class="scroll" tabindex="0" role="group" aria-label="List of dead letters"><table><thead><tr><th scope="col">Id</th><th scope="col">Since</th><th scope="col">Reason</th><th scope="col">Record</th></tr></thead>
      <tbody>${letters.map((letter) => html`<tr key=${letter.id}><td>${letter.id}</td><td>${stamp(letter.at_us / 1000, zone)}</td><td class="reason">${letter.reason}</td><td><code>${letter.raw.slice(0, 400)}</code></td></tr>`)}</tbody></table></div>`}
    ${asking && html`<${Dialog} title="Delete all dead letters?" onClose=${() => setAsking(false)}><p>These records are in no other place. What is deleted cannot be brought back.</p>
      <footer><button type="button" onClick=${() => setAsking(false)}>Keep them</button><button type="button" class="danger" onClick=${purge}>Delete</button></footer><//>`}
  </section>`;
}
