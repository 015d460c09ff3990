// The page's frame: which view, whose token, which theme, what is wrong; and the way between the address and the views.

import { setToken } from "./api.js";
import { fromAddress, remembered, toAddress } from "./state.js";
import { Dialog, html, Icon, IconButton, Menu, render, useCallback, useEffect, useRef, useState, Word } from "./view.js";
import { Alerts } from "./alerts.js";
import { Explorer } from "./explorer.js";
import { Pipeline } from "./pipeline.js";

const VIEWS = [["logs", "Logs"], ["pipeline", "Pipeline"], ["alerts", "Alerts"]];
const THEMES = ["system", "light", "dark"];
const KEYS = [
  ["/", "Write a query"], ["Enter", "Search; open the record"], ["j  k", "Next, previous record (also ↓ ↑)"], ["c", "Context of the record"], ["t", "Choose the time"], ["[  ]", "Earlier, later"], ["-", "Zoom out"],
  ["r", "Search again"], ["l", "Live tail"], ["p", "Pause and resume the tail"], ["f", "Values and fields"], ["e", "Export"], ["y", "Copy a link"], ["d", "Light, dark"], ["1 2 3", "Logs, pipeline, alerts"], ["Esc", "Close"], ["?", "These keys"],
];
const LOUD = ["away", "busy", "unavailable", "timeout", "other", "forbidden", "missing"];

const applyTheme = (theme) => {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
};
applyTheme(remembered.get("theme", "system"));

function Page() {
  const [state, setState] = useState(() => fromAddress(location.pathname, location.search));
  const [theme, setTheme] = useState(() => remembered.get("theme", "system"));
  const [failure, setFailure] = useState(null);
  const [keys, setKeys] = useState(false);
  const [generation, setGeneration] = useState(0);
  const shortcuts = useRef({});

  /** Looks at something else; `replace` leaves no step to go back to. */
  const go = useCallback((patch, replace = false) => setState((state) => {
    const next = { ...state, ...patch };
    const address = toAddress(next);
    if (address !== location.pathname + location.search) history[replace ? "replaceState" : "pushState"](null, "", address);
    return next;
  }), []);
  const onFailure = useCallback((error) => setFailure(error), []);
  useEffect(() => {
    const back = () => setState(fromAddress(location.pathname, location.search));
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  useEffect(() => { setFailure(null); if (state.view !== "logs") shortcuts.current = {}; }, [state.view]);
  useEffect(() => {
    const what = VIEWS.find(([view]) => view === state.view)[1];
    document.title = state.view === "logs" ? `${state.live ? "● " : ""}${state.query || "Logs"} · logweir` : `${what} · logweir`;
  }, [state]);
  const nextTheme = () => {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    setTheme(next);
    applyTheme(next);
    remembered.set("theme", next === "system" ? null : next);
  };
  useEffect(() => {
    const onKeyDown = (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (event.target.closest("input, select, textarea")) {
        if (event.key === "Escape") event.target.blur();
        return;
      }
      if (["Enter", " "].includes(event.key) && event.target.closest("button, a")) return;
      const own = { "?": () => setKeys(true), d: nextTheme, 1: () => go({ view: "logs" }), 2: () => go({ view: "pipeline" }), 3: () => go({ view: "alerts" }) };
      const run = own[event.key] ?? shortcuts.current[event.key];
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
    go({ view });
  };
  return html`
    <a class="skip" href="#content">To the content</a>
    <header class="top">
      <a class="brand" href="/" aria-label="logweir: logs" onClick=${link("logs")}><img src="/assets/icon.svg" alt="" width="22" height="22" /><span>logweir</span></a>
      <nav aria-label="Views">${VIEWS.map(([view, title]) => html`<a href=${toAddress({ ...state, view })} aria-current=${state.view === view ? "page" : undefined} onClick=${link(view)}>${title}</a>`)}</nav>
      <span class="grow"></span>
      <${IconButton} icon="keyboard" label="Keys (?)" onClick=${() => setKeys(true)} />
      <${IconButton} icon="theme" label=${`Theme: ${theme} (d)`} onClick=${nextTheme} />
    </header>
    ${failure && LOUD.includes(failure.kind) && html`<${Trouble} failure=${failure} onAgain=${() => setGeneration(generation + 1)} />`}
    <div id="content" class="content" key=${generation}>
      ${state.view === "logs" && html`<${Explorer} state=${state} go=${go} onFailure=${onFailure} shortcuts=${shortcuts} />`}
      ${state.view === "pipeline" && html`<${Pipeline} state=${state} onFailure=${onFailure} />`}
      ${state.view === "alerts" && html`<${Alerts} state=${state} go=${go} onFailure=${onFailure} />`}
    </div>
    ${failure?.kind === "token" && html`<${Token} detail=${failure.message} onClose=${() => setFailure(null)} onDone=${() => { setFailure(null); setGeneration(generation + 1); }} />`}
    ${keys && html`<${Dialog} title="Keys" onClose=${() => setKeys(false)}><dl class="keys">${KEYS.map(([key, what]) => html`<div><dt>${key.split("  ").map((one) => html`<kbd>${one}</kbd> `)}</dt><dd>${what}</dd></div>`)}</dl><//>`}
    <${Menu} /><${Word} />`;
}

function Trouble({ failure, onAgain }) {
  const unavailable = failure.reason === "database_unavailable" ? "The database does not answer." : "The server does not answer queries now.";
  const titles = { away: `${location.host} does not answer.`, busy: "Too many queries run at once.", unavailable, timeout: "This query took too long.", forbidden: "This token may not do that.", missing: "This server does not offer that." };
  const hints = { away: "What is below was fetched before. It is tried again every few seconds.", busy: "It is tried again by itself.", unavailable: `${failure.message}. It is tried again by itself.`, timeout: "Narrow the time, or look for less." };
  return html`<div class="trouble" role="alert"><${Icon} name="alert" /><p><b>${titles[failure.kind] ?? "Something went wrong."}</b> ${hints[failure.kind] ?? failure.message}</p>
    <button type="button" onClick=${onAgain}>Try now</button></div>`;
}

function Token({ detail, onDone, onClose }) {
  const [value, setValue] = useState("");
  const [keep, setKeep] = useState(false);
  const onSubmit = (event) => {
    event.preventDefault();
    setToken(value.trim(), keep);
    onDone();
  };
  return html`<${Dialog} title="A token is needed" className="token" onClose=${onClose}>
    <form onSubmit=${onSubmit}>
      <p>The server says: ${detail}.</p>
            <label>Token<input type="password" name="token" autocomplete="current-password" required value=${value} onInput=${(event) => setValue(event.target.value)} /></label>
      <label class="choice"><input type="checkbox" checked=${keep} onChange=${(event) => setKeep(event.target.checked)} /><span>Remember it in this browser <span class="soft">(else until the tab is closed)</span></span></label>
            <footer><button type="submit" class="primary"><${Icon} name="key" />Use it</button></footer>
    </form><//>`;
}

render(html`<${Page} />`, document.getElementById("page"));
