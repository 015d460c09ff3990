// Time range picker: a relative or absolute range, and the time zone of displayed times.

import { serverNow } from "./api.js";
import { html, Icon, useEffect, useRef, useState } from "./components.js";
import { fromZone, inZone, isZone, localZone, PRESETS, rangeLabel, resolve, zones } from "./time.js";

export function TimePicker({ state, zone, open, setOpen, onRange, onZone }) {
  const box = useRef();
  const button = useRef();
  const [absolute, setAbsolute] = useState({ from: "", to: "", error: "" });
  const [relative, setRelative] = useState({ size: "90", unit: "m" });
  const [zoneText, setZoneText] = useState(zone);
  useEffect(() => {
    if (!open) return undefined;
    const now = serverNow();
    setAbsolute({ from: inZone(resolve(state.start, now), zone), to: inZone(resolve(state.end, now), zone), error: "" });
    setZoneText(zone);
    (box.current.querySelector("[aria-current=true]") ?? box.current.querySelector("button")).focus();
    const onPointerDown = (event) => box.current.contains(event.target) || button.current.contains(event.target) || setOpen(false);
    addEventListener("pointerdown", onPointerDown, true);
    return () => removeEventListener("pointerdown", onPointerDown, true);
  }, [open, zone]);

  const close = () => { setOpen(false); button.current.focus(); };
  const choose = (start, end) => { onRange(start, end); close(); };
  const onAbsolute = (event) => {
    event.preventDefault();
    const [from, to] = [fromZone(absolute.from, zone), fromZone(absolute.to, zone)];
    if (!Number.isFinite(from) || !Number.isFinite(to)) return setAbsolute({ ...absolute, error: "Enter a date and time in both fields." });
    if (from >= to) return setAbsolute({ ...absolute, error: "The start must be before the end." });
    choose(new Date(from).toISOString(), new Date(to).toISOString());
  };
  const onRelative = (event) => {
    event.preventDefault();
    const size = Math.floor(Number(relative.size));
    if (size > 0) choose(`-${size}${relative.unit}`, "now");
  };
  const onZoneInput = (event) => {
    setZoneText(event.target.value);
    // The list has one name per zone; aliases can be typed.
    if (isZone(event.target.value)) onZone(event.target.value);
  };
  const onKeyDown = (event) => {
    if (event.key === "Escape") close();
    event.stopPropagation();
  };
  return html`<div class="picker">
    <button type="button" class="range" ref=${button} aria-haspopup="dialog" aria-expanded=${open} onClick=${() => setOpen(!open)}>
      <${Icon} name="clock" /><span class="range-label">${rangeLabel(state.start, state.end, zone)}</span><span class="zone muted">${zone}</span><${Icon} name="down" /></button>
    ${open && html`<div class="popover" role="dialog" aria-label="Time range" ref=${box} onKeyDown=${onKeyDown}>
      <div class="presets">${PRESETS.map(([value, label]) => html`<button type="button" aria-current=${state.end === "now" && state.start === value ? "true" : undefined} onClick=${() => choose(value, "now")}>${label}</button>`)}</div>
      <div class="custom">
        <form onSubmit=${onRelative}><h3>Relative range</h3><div class="line"><span>Last</span>
          <input type="number" min="1" max="999999" aria-label="Amount" value=${relative.size} onInput=${(event) => setRelative({ ...relative, size: event.target.value })} />
          <select aria-label="Unit" value=${relative.unit} onChange=${(event) => setRelative({ ...relative, unit: event.target.value })}>
            <option value="s">seconds</option><option value="m">minutes</option><option value="h">hours</option><option value="d">days</option><option value="w">weeks</option></select>
          <button type="submit">Apply</button></div></form>
        <form onSubmit=${onAbsolute}><h3>Absolute range</h3>
          <label>From<input type="datetime-local" step="1" name="from" value=${absolute.from} onInput=${(event) => setAbsolute({ ...absolute, from: event.target.value })} /></label>
          <label>To<input type="datetime-local" step="1" name="to" value=${absolute.to} onInput=${(event) => setAbsolute({ ...absolute, to: event.target.value })} /></label>
          ${absolute.error && html`<p class="problem" role="alert">${absolute.error}</p>`}
          <button type="submit">Apply absolute range</button></form>
        <div><h3>Time zone</h3><div class="line">
          <input list="zones" aria-label="Time zone" value=${zoneText} onInput=${onZoneInput} onFocus=${(event) => event.target.select()} />
          <datalist id="zones">${zones().map((name) => html`<option value=${name} />`)}</datalist>
          <button type="button" aria-pressed=${zone === "UTC"} onClick=${() => onZone("UTC")}>UTC</button>
          <button type="button" aria-pressed=${zone === localZone()} onClick=${() => onZone("")}>Local</button></div></div>
      </div>
    </div>`}
  </div>`;
}
