// Which time: a range that goes along with the clock, or one that stands still; and the zone that times are shown in.

import { serverNow } from "./api.js";
import { html, Icon, useEffect, useRef, useState } from "./view.js";
import { fromZone, inZone, isZone, localZone, QUICK, rangeLabel, resolve, zones } from "./time.js";

export function Picker({ state, zone, open, setOpen, onRange, onZone }) {
  const box = useRef();
  const button = useRef();
  const [own, setOwn] = useState({ from: "", to: "", error: "" });
  const [last, setLast] = useState({ size: "90", unit: "m" });
  const [zoneText, setZoneText] = useState(zone);
  useEffect(() => {
    if (!open) return undefined;
    const now = serverNow();
    setOwn({ from: inZone(resolve(state.start, now), zone), to: inZone(resolve(state.end, now), zone), error: "" });
    setZoneText(zone);
    (box.current.querySelector("[aria-current=true]") ?? box.current.querySelector("button")).focus();
    const away = (event) => box.current.contains(event.target) || button.current.contains(event.target) || setOpen(false);
    addEventListener("pointerdown", away, true);
    return () => removeEventListener("pointerdown", away, true);
  }, [open, zone]);

  const close = () => { setOpen(false); button.current.focus(); };
  const choose = (start, end) => { onRange(start, end); close(); };
  const onOwn = (event) => {
    event.preventDefault();
    const [from, to] = [fromZone(own.from, zone), fromZone(own.to, zone)];
    if (!Number.isFinite(from) || !Number.isFinite(to)) return setOwn({ ...own, error: "Both need a date and a time." });
    if (from >= to) return setOwn({ ...own, error: "The beginning must come before the end." });
    choose(new Date(from).toISOString(), new Date(to).toISOString());
  };
  const onLast = (event) => {
    event.preventDefault();
    const size = Math.floor(Number(last.size));
    if (size > 0) choose(`-${size}${last.unit}`, "now");
  };
  const onZoneInput = (event) => {
    setZoneText(event.target.value);
    // The list has one name of each zone; whoever types may know another one.
    if (isZone(event.target.value)) onZone(event.target.value);
  };
  const onKeyDown = (event) => {
    if (event.key === "Escape") close();
    event.stopPropagation();
  };
  return html`<div class="picker">
    <button type="button" class="range" ref=${button} aria-haspopup="dialog" aria-expanded=${open} onClick=${() => setOpen(!open)}>
      <${Icon} name="clock" /><span class="range-label">${rangeLabel(state.start, state.end, zone)}</span><span class="zone soft">${zone}</span><${Icon} name="down" /></button>
    ${open && html`<div class="popover" role="dialog" aria-label="Time" ref=${box} onKeyDown=${onKeyDown}>
      <div class="quick">${QUICK.map(([value, label]) => html`<button type="button" aria-current=${state.end === "now" && state.start === value ? "true" : undefined} onClick=${() => choose(value, "now")}>${label}</button>`)}</div>
      <div class="own">
        <form onSubmit=${onLast}><h3>Last</h3><div class="line">
          <input type="number" min="1" max="999999" aria-label="How many" value=${last.size} onInput=${(event) => setLast({ ...last, size: event.target.value })} />
          <select aria-label="Unit" value=${last.unit} onChange=${(event) => setLast({ ...last, unit: event.target.value })}>
            <option value="s">seconds</option><option value="m">minutes</option><option value="h">hours</option><option value="d">days</option><option value="w">weeks</option></select>
          <button type="submit">Apply</button></div></form>
        <form onSubmit=${onOwn}><h3>From, to</h3>
          <label>From<input type="datetime-local" step="1" name="from" value=${own.from} onInput=${(event) => setOwn({ ...own, from: event.target.value })} /></label>
          <label>To<input type="datetime-local" step="1" name="to" value=${own.to} onInput=${(event) => setOwn({ ...own, to: event.target.value })} /></label>
          ${own.error && html`<p class="problem" role="alert">${own.error}</p>`}
          <button type="submit">Apply from, to</button></form>
        <div><h3>Zone</h3><div class="line">
          <input list="zones" aria-label="Time zone" value=${zoneText} onInput=${onZoneInput} onFocus=${(event) => event.target.select()} />
          <datalist id="zones">${zones().map((name) => html`<option value=${name} />`)}</datalist>
          <button type="button" aria-pressed=${zone === "UTC"} onClick=${() => onZone("UTC")}>UTC</button>
          <button type="button" aria-pressed=${zone === localZone()} onClick=${() => onZone("")}>Here</button></div></div>
      </div>
    </div>`}
  </div>`;
}
