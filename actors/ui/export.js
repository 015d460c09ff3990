// What is seen as a file, or as a line for the shell.

import { address, download, hasToken } from "./api.js";
import { copy, Dialog, html, Icon, plural, say, useState } from "./view.js";

const FORMATS = [["ndjson", "NDJSON", "one JSON object per line"], ["csv", "CSV", "for spreadsheets"], ["json", "JSON", "one document"]];
const MOST = 10000;

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function Export({ query, range, total, onClose }) {
  const [format, setFormat] = useState("ndjson");
  const [state, setState] = useState({ busy: false, error: null });
  const parameters = { query, ...range, limit: MOST, format };
  const curl = `curl -sS ${hasToken() ? "-H 'Authorization: Bearer TOKEN' " : ""}${shell(location.origin + address("query", parameters))}`;
  const onSave = async () => {
    setState({ busy: true, error: null });
    try {
      const file = await download("query", parameters);
      // One document is one page, which may end before so many records.
      const page = format === "json" && JSON.parse(await file.text());
      const url = URL.createObjectURL(file);
      const link = document.createElement("a");
      link.href = url;
      link.download = `logweir-${new Date(range.start).toISOString().replaceAll(":", "-").slice(0, 19)}.${format}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 60e3);
      const left = page && page.cursor.older && page.records.length < MOST;
      say(`${link.download} saved${left ? `: the newest ${plural(page.records.length, "record")}; NDJSON and CSV hold more` : ""}`);
      onClose();
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<${Dialog} title="Export" onClose=${onClose}>
    <fieldset><legend>Format</legend>${FORMATS.map(([value, name, what]) => html`<label class="choice"><input type="radio" name="format" value=${value} checked=${format === value} onChange=${() => setFormat(value)} /><span><b>${name}</b> <span class="soft">${what}</span></span></label>`)}</fieldset>
    ${total > MOST && html`<p class="note"><${Icon} name="alert" />The newest ${MOST.toLocaleString("en")} of ${total.toLocaleString("en")} records. For the others narrow the time, or follow the cursor of <code>/api/v1/query</code>.</p>`}
    ${state.error && html`<p class="problem" role="alert"><${Icon} name="alert" />${state.error.message}</p>`}
    <div class="code"><code>${curl}</code><button type="button" onClick=${() => copy(curl, "Command")}><${Icon} name="copy" />Copy</button></div>
    <footer><button type="button" class="primary" disabled=${state.busy} onClick=${onSave}><${Icon} name="download" />${state.busy ? "Fetching…" : "Save the file"}</button></footer>
  <//>`;
}
