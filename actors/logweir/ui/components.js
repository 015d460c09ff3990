// Shared components: icons, buttons, number formatting, context menu, dialogs, toasts.

import { h, render } from "./vendor/preact.js";
import { useEffect, useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

export { render, useEffect, useLayoutEffect, useRef, useState };
export { useCallback, useMemo } from "./vendor/hooks.js";
export const html = htm.bind(h);

const PATHS = {
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16.5 16.5 21 21",
  clock: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 7v5l3.5 2",
  play: "M7 5l12 7-12 7z",
  pause: "M8 5v14M16 5v14",
  stop: "M6 6h12v12H6z",
  refresh: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  right: "M9 5l7 7-7 7",
  left: "M15 5l-7 7 7 7",
  down: "M5 9l7 7 7-7",
  columns: "M4 5h16v14H4zM10 5v14M15 5v14",
  link: "M10 14a4 4 0 0 0 6 .5l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6-.5l-3 3a4 4 0 0 0 6 6l1-1",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  context: "M4 6h16M4 12h16M4 18h16M2 12h.01",
  filter: "M4 5h16l-6 8v6l-4-2v-4z",
  keyboard: "M3 6h18v12H3zM7 10h.01M11 10h.01M15 10h.01M8 14h8",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  zoomOut: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16.5 16.5 21 21M8 11h6",
  key: "M14 10a4 4 0 1 0-3.5 5.9L12 14.5h2V12.5h2V10.5zM14 10l6-6M18 6l2 2",
  check: "M5 13l4 4L19 7",
  alert: "M12 4l9 16H3zM12 10v4M12 17h.01",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;

/** A button that shows only an icon; its label is the tooltip and the accessible name. */
export const IconButton = ({ icon, label, ...rest }) =>
  html`<button type="button" class="icon-button" aria-label=${label} title=${label} ...${rest}><${Icon} name=${icon} /></button>`;

const number = new Intl.NumberFormat("en");
/** Says what a result lacks: `partial_reason` of the response. */
export const PartialNote = ({ partial_reason: reason }) => html`<p class="note" role="status"><${Icon} name="alert" /><span>This result is incomplete: ${reason}</span></p>`;

export const count = (value) => (Number.isFinite(value) ? number.format(value) : "–");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
export const short = (value) => (Number.isFinite(value) ? (value < 10000 ? number.format(value) : compact.format(value)) : "–");
export const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const step = value < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(value) / 10));
  return `${(value / 1024 ** step).toLocaleString("en", { maximumFractionDigits: step ? 1 : 0 })} ${["B", "KiB", "MiB", "GiB", "TiB"][step]}`;
}

/** Returns the CSS class that colors a severity such as `ERROR`. */
export const severityClass = (text) => `severity-${(/^(TRACE|DEBUG|INFO|WARN|ERROR|FATAL)/.exec(text ?? "")?.[1] ?? "none").toLowerCase()}`;

/** Ref to the latest value, for callbacks that outlive a render. */
export function useLatest(value) {
  const ref = useRef(value);
  ref.current = value;
  return ref;
}

export function useMedia(query) {
  const [matches, setMatches] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const media = matchMedia(query);
    const update = () => setMatches(media.matches);
    media.addEventListener("change", update);
    return () => media.removeEventListener("change", update);
  }, [query]);
  return matches;
}

/** Calls `measure` now and one frame after each resize: resizing inside of the observer's callback would raise its loop error. */
export function onResize(element, measure) {
  let frame = 0;
  const observer = new ResizeObserver(() => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(measure);
  });
  observer.observe(element);
  measure();
  return () => {
    observer.disconnect();
    cancelAnimationFrame(frame);
  };
}

export function useWidth(ref) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => onResize(ref.current, () => setWidth(ref.current.clientWidth)), []);
  return width;
}

/** The context menu, one for the whole app: `openMenu(event, label, [{ icon, text, run }])`. */
let showMenu = () => {};
export function openMenu(event, label, items) {
  event.stopPropagation();
  const box = event.currentTarget?.getBoundingClientRect?.();
  const [x, y] = event.clientX || event.clientY || !box ? [event.clientX, event.clientY] : [box.left, box.bottom];
  showMenu({ x, y, label, items, from: document.activeElement });
}

export function Menu() {
  const [menu, setMenu] = useState(null);
  const box = useRef();
  showMenu = setMenu;
  useLayoutEffect(() => {
    if (!menu) return undefined;
    const { width, height } = box.current.getBoundingClientRect();
    box.current.style.left = `${Math.max(4, Math.min(menu.x, innerWidth - width - 4))}px`;
    box.current.style.top = `${Math.max(4, Math.min(menu.y + 4, innerHeight - height - 4))}px`;
    box.current.querySelector("button").focus();
    const onPointerDown = (event) => box.current?.contains(event.target) || setMenu(null);
    const dismiss = () => setMenu(null);
    addEventListener("pointerdown", onPointerDown, true);
    addEventListener("resize", dismiss);
    return () => {
      removeEventListener("pointerdown", onPointerDown, true);
      removeEventListener("resize", dismiss);
    };
  }, [menu]);
  if (!menu) return null;
  const close = () => {
    setMenu(null);
    menu.from?.focus?.({ preventScroll: true });
  };
  const onKeyDown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") close();
    else if (step) {
      const buttons = [...box.current.querySelectorAll("button")];
      buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length].focus();
    }
    // While the menu is open, shortcuts must not see its keys.
    event.stopPropagation();
    if (step || ["Escape", "Tab"].includes(event.key)) event.preventDefault();
  };
  return html`<div class="menu" role="menu" aria-label=${menu.label} ref=${box} onKeyDown=${onKeyDown}>
    <div class="menu-label" role="presentation">${menu.label}</div>
    ${menu.items.map(({ icon, text, run }) => html`<button type="button" role="menuitem" onClick=${() => { close(); run(); }}><${Icon} name=${icon} />${text}</button>`)}
  </div>`;
}

/** A modal dialog, open while mounted. */
export function Dialog({ title, onClose, className = "", children }) {
  const box = useRef();
  useEffect(() => {
    const from = document.activeElement;
    box.current.showModal();
    return () => from?.focus?.({ preventScroll: true });
  }, []);
  const onBackdropClick = (event) => event.target === box.current && onClose();
  const onKeyDown = (event) => event.stopPropagation();
  return html`<dialog ref=${box} class=${className} aria-label=${title} onKeyDown=${onKeyDown} onClick=${onBackdropClick}
      onCancel=${(event) => { event.preventDefault(); onClose(); }}>
    <header><h2>${title}</h2><${IconButton} icon="close" label="Close" onClick=${onClose} /></header>
    <div class="dialog-body">${children}</div>
  </dialog>`;
}

/** A short status message that disappears after a few seconds. */
let setToast = () => {};
export const showToast = (text) => setToast(text);
export function Toast() {
  const [text, setText] = useState("");
  setToast = setText;
  useEffect(() => {
    const timer = text && setTimeout(() => setText(""), 4000);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<div class="toast ${text ? "shown" : ""}" role="status">${text}</div>`;
}

export async function copy(text, label) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The Clipboard API needs a secure context: TLS or loopback.
    const field = document.createElement("textarea");
    field.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  showToast(`${label} copied`);
}
