// Export of the current search as a file, or as a curl command.

import { apiUrl, download, hasToken } from "./api.js";
import { copy, Dialog, html, Icon, plural, showToast, useState } from "./components.js";

const FORMATS = [["ndjson", "NDJSON", "one JSON object per line"], ["csv", "CSV", "for spreadsheets"], ["json", "JSON", "a single document"]];
const LIMIT = 10000;

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function Export({ query, range, total, onClose }) {
  const [format, setFormat] = useState("ndjson");
  const [state, setState] = useState({ busy: false, error: null });
  const parameters = { query, ...range, limit: LIMIT, format };
  const curl = `curl -sS ${hasToken() ? "-H 'Authorization: Bearer TOKEN' " : ""}${shell(location.origin + apiUrl("query", parameters))}`;
  const onDownload = async () => {
    setState({ busy: true, error: null });
    try {
      const { file, partial } = await download("query", parameters);
      // A JSON document is one page of results, which the server may cut short.
      const page = format === "json" && JSON.parse(await file.text());
      const url = URL.createObjectURL(file);
      const link = document.createElement("a");
      link.href = url;
      link.download = `logweir-${new Date(range.start).toISOString().replaceAll(":", "-").slice(0, 19)}.${format}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 60e3);
      const truncated = page && page.cursor.older && page.records.length < LIMIT;
      const incomplete = partial ?? (page && page.source.partial_reason);
      showToast(`${link.download} downloaded${incomplete ? `, but incomplete: ${incomplete}` : truncated ? ` with the latest ${plural(page.records.length, "record")}; export NDJSON or CSV for more` : ""}`);
      onClose();
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<${Dialog} title="Export" onClose=${onClose}>
    <fieldset><legend>Format</legend>${FORMATS.map(([value, name, description]) => html`<label class="choice"><input type="radio" name="format" value=${value} checked=${format === value} onChange=${() => setFormat(value)} /><span><b>${name}</b> <span class="muted">${description}</span></span></label>`)}</fieldset>
    ${total > LIMIT && html`<p class="note"><${Icon} name="alert" />Exports the latest ${LIMIT.toLocaleString("en")} of ${total.toLocaleString("en")} records. For the rest, narrow the time range or page through <code>/api/v1/query</code> with its cursor.</p>`}
    ${state.error && html`<p class="problem" role="alert"><${Icon} name="alert" />${state.error.message}</p>`}
    <p class="muted">Or use curl:</p>
    <div class="code"><code>${curl}</code><button type="button" onClick=${() => copy(curl, "Command")}><${Icon} name="copy" />Copy</button></div>
    <footer><button type="button" class="primary" disabled=${state.busy} onClick=${onDownload}><${Icon} name="download" />${state.busy ? "Downloading…" : "Download"}</button></footer>
  <//>`;
}
