// Application shell: navigation, access token, theme, error banner, keyboard shortcuts, and the URL as the source of state.

import { setToken } from "./api.js";
import { fromUrl, preferences, toUrl } from "./state.js";
import { Dialog, html, Icon, IconButton, Menu, render, useCallback, useEffect, useRef, useState, Toast } from "./components.js";
import { Alerts } from "./alerts.js";
import { Explorer } from "./explorer.js";
import { Pipeline } from "./pipeline.js";

const VIEWS = [["logs", "Logs"], ["pipeline", "Pipeline"], ["alerts", "Alerts"]];
const THEMES = ["system", "light", "dark"];
const SHORTCUTS = [
  ["/", "Focus the query"], ["Enter", "Run query or expand record"], ["j  k", "Next or previous record"], ["c", "Show the record in context"], ["t", "Select a time range"], ["[  ]", "Earlier or later range"],
  ["-", "Zoom out"],
  ["r", "Refresh"], ["l", "Start or stop the live tail"], ["p", "Pause or resume the live tail"], ["f", "Show or hide filters"], ["e", "Export records"], ["y", "Copy a link"], ["d", "Switch theme"], ["1  2  3", "Logs, pipeline, alerts"],
  ["Esc", "Close"], ["?", "Keyboard shortcuts"],
];
const BANNER_KINDS = ["unreachable", "busy", "unavailable", "timeout", "other", "forbidden", "missing"];

const applyTheme = (theme) => {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
};
applyTheme(preferences.get("theme", "system"));

function App() {
  const [state, setState] = useState(() => fromUrl(location.pathname, location.search));
  const [theme, setTheme] = useState(() => preferences.get("theme", "system"));
  const [failure, setFailure] = useState(null);
  const [helpOpen, setHelpOpen] = useState(false);
  const [generation, setGeneration] = useState(0);
  const shortcuts = useRef({});

  /** Updates the state and the URL; `replace` adds no history entry. */
  const navigate = useCallback((patch, replace = false) => setState((state) => {
    const next = { ...state, ...patch };
    const url = toUrl(next);
    if (url !== location.pathname + location.search) history[replace ? "replaceState" : "pushState"](null, "", url);
    return next;
  }), []);
  const onFailure = useCallback((error) => setFailure(error), []);
  useEffect(() => {
    const back = () => setState(fromUrl(location.pathname, location.search));
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  useEffect(() => { setFailure(null); if (state.view !== "logs") shortcuts.current = {}; }, [state.view]);
  useEffect(() => {
    const title = VIEWS.find(([view]) => view === state.view)[1];
    document.title = state.view === "logs" ? `${state.live ? "● " : ""}${state.query || "Logs"} · logweir` : `${title} · logweir`;
  }, [state]);
  const nextTheme = () => {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    setTheme(next);
    applyTheme(next);
    preferences.set("theme", next === "system" ? null : next);
  };
  useEffect(() => {
    const onKeyDown = (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (event.target.closest("input, select, textarea")) {
        if (event.key === "Escape") event.target.blur();
        return;
      }
      if (["Enter", " "].includes(event.key) && event.target.closest("button, a")) return;
      const global = { "?": () => setHelpOpen(true), d: nextTheme, 1: () => navigate({ view: "logs" }), 2: () => navigate({ view: "pipeline" }), 3: () => navigate({ view: "alerts" }) };
      const run = global[event.key] ?? shortcuts.current[event.key];
      if (!run) return;
      event.preventDefault();
      run();
    };
    addEventListener("keydown", onKeyDown);
    return () => removeEventListener("keydown", onKeyDown);
  });

  const link = (view) => (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
    event.preventDefault();
    navigate({ view });
  };
  return html`
    <a class="skip" href="#content">Skip to content</a>
    <header class="top">
      <a class="brand" href="/" aria-label="logweir home" onClick=${link("logs")}><img src="/assets/icon.svg" alt="" width="22" height="22" /><span>logweir</span></a>
      <nav aria-label="Views">${VIEWS.map(([view, title]) => html`<a href=${toUrl({ ...state, view })} aria-current=${state.view === view ? "page" : undefined} onClick=${link(view)}>${title}</a>`)}</nav>
      <span class="spacer"></span>
      <${IconButton} icon="keyboard" label="Keyboard shortcuts (?)" onClick=${() => setHelpOpen(true)} />
      <${IconButton} icon="theme" label=${`Theme: ${theme} (d)`} onClick=${nextTheme} />
    </header>
    ${failure && BANNER_KINDS.includes(failure.kind) && html`<${ErrorBanner} failure=${failure} onRetry=${() => setGeneration(generation + 1)} />`}
    <div id="content" class="content" key=${generation}>
      ${state.view === "logs" && html`<${Explorer} state=${state} navigate=${navigate} onFailure=${onFailure} shortcuts=${shortcuts} />`}
      ${state.view === "pipeline" && html`<${Pipeline} state=${state} onFailure=${onFailure} />`}
      ${state.view === "alerts" && html`<${Alerts} state=${state} navigate=${navigate} onFailure=${onFailure} />`}
    </div>
    ${failure?.kind === "token" && html`<${TokenDialog} detail=${failure.message} onClose=${() => setFailure(null)} onDone=${() => { setFailure(null); setGeneration(generation + 1); }} />`}
    ${helpOpen && html`<${Dialog} title="Keyboard shortcuts" onClose=${() => setHelpOpen(false)}><dl class="keys">${SHORTCUTS.map(([key, action]) => html`<div><dt>${key.split("  ").map((one) => html`<kbd>${one}</kbd> `)}</dt><dd>${action}</dd></div>`)}</dl><//>`}
    <${Menu} /><${Toast} />`;
}

function ErrorBanner({ failure, onRetry }) {
  const unavailable = failure.reason === "database_unavailable" ? "The database is unavailable." : failure.reason === "database_unprepared" ? "The database is not prepared for queries." : "The server cannot answer queries right now.";
  const titles = { unreachable: `${location.host} is unreachable.`, busy: "Too many queries are running.", unavailable, timeout: "The query timed out.", forbidden: "This access token lacks the required permission.", missing: "This server does not support this request." };
  const hints = { unreachable: "Showing the last data received. Retrying automatically.", busy: "Retrying automatically.", unavailable: `${failure.message}. Retrying automatically.`, timeout: "Narrow the time range or refine the query." };
  return html`<div class="error-banner" role="alert"><${Icon} name="alert" /><p><b>${titles[failure.kind] ?? "The request failed."}</b> ${hints[failure.kind] ?? failure.message}</p>
    <button type="button" onClick=${onRetry}>Retry now</button></div>`;
}

function TokenDialog({ detail, onDone, onClose }) {
  const [value, setValue] = useState("");
  const [persist, setPersist] = useState(false);
  const onSubmit = (event) => {
    event.preventDefault();
    setToken(value.trim(), persist);
    onDone();
  };
  return html`<${Dialog} title="Access token required" className="token" onClose=${onClose}>
    <form onSubmit=${onSubmit}>
      <p>The server requires a token: ${detail}.</p>
      <label>Access token<input type="password" name="token" autocomplete="current-password" required value=${value} onInput=${(event) => setValue(event.target.value)} /></label>
      <label class="choice"><input type="checkbox" checked=${persist} onChange=${(event) => setPersist(event.target.checked)} /><span>Remember in this browser <span class="muted">(otherwise, until this tab is closed)</span></span></label>
      <footer><button type="submit" class="primary"><${Icon} name="key" />Continue</button></footer>
    </form><//>`;
}

render(html`<${App} />`, document.getElementById("app"));
