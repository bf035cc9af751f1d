// The bars above the map: time, filters, grouping, theme.
import { html, useRef, useState } from "/vendor/htm-preact.js";
import { parseFilters } from "/js/filters.js";
import { count, moment, plural, rate } from "/js/format.js";
import { Icon, Mark } from "/js/icons.js";

const WINDOWS = [[60, "Last minute"], [300, "Last 5 minutes"], [900, "Last 15 minutes"], [3600, "Last hour"], [21_600, "Last 6 hours"], [86_400, "Last 24 hours"], [604_800, "Last 7 days"]];
const GROUPS = [["workload", "Workloads"], ["pod", "Pods"], ["namespace", "Namespaces"], ["identity", "Identities"]];

function theme() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function ThemeButton() {
  const [now, setNow] = useState(theme());
  const toggle = () => {
    const next = now === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try { localStorage.setItem("ciliate-theme", next); } catch { /* private windows have no storage; the choice lasts as long as the page */ }
    setNow(next);
  };
  const label = now === "dark" ? "Light theme" : "Dark theme";
  return html`<button class="icon" onClick=${toggle} aria-label=${label} title=${label}><${Icon} name=${now === "dark" ? "sun" : "moon"} size="18" /></button>`;
}

export function Header({ status, state, connected, paused, onPause, onChange }) {
  const nodes = status?.nodes ?? [];
  const away = nodes.filter((node) => !node.connected);
  const live = !state.since;
  return html`<header class="top">
    <a class="brand" href="/" aria-label="Ciliate, start page"><${Mark} /><span>Ciliate</span></a>
    <p class="health" role="status">
      <span class="dot ${connected === false || away.length ? "refused" : "passed"}" aria-hidden="true"></span>
      ${connected === false ? "Relay away, trying again" : status ? html`<span>${plural(nodes.length - away.length, "node")}<span class="wide">${away.length ? `, ${away.map((node) => node.name).join(", ")} away` : ""}
        <span class="muted"> · ${rate(status.rate)} · ${count(status.flows)} flows held</span></span></span>` : "Connecting …"}
    </p>
    <span class="grow"></span>
    <label><span class="hidden">Time range</span>
      <select value=${live ? String(state.window) : "fixed"} onChange=${(event) => event.target.value !== "fixed" && onChange({ window: Number(event.target.value), since: 0, until: 0 })}>
        ${!live && html`<option value="fixed">${moment(state.since, state.until - state.since)} – ${moment(state.until, state.until - state.since)}</option>`}
        ${WINDOWS.map(([seconds, name]) => html`<option value=${String(seconds)}>${name}</option>`)}
        ${!WINDOWS.some(([seconds]) => seconds === state.window) && html`<option value=${String(state.window)}>${`Last ${count(state.window)} s`}</option>`}
      </select></label>
    <button class="live ${live && !paused ? "on" : ""}" aria-pressed=${live && !paused} onClick=${() => (live ? onPause(!paused) : onChange({ since: 0, until: 0 }))}>
      <${Icon} name=${live && !paused ? "pause" : "play"} size="14" />${live && !paused ? "Live" : "Go live"}</button>
    <${ThemeButton} />
  </header>`;
}

export function FilterBar({ state, known, error, onChange }) {
  const [text, setText] = useState("");
  const [problem, setProblem] = useState("");
  const input = useRef(null);
  const submit = (event) => {
    event.preventDefault();
    const { found, error: wrong } = parseFilters(text, known.names);
    setProblem(wrong ?? "");
    if (found?.length) onChange({ filters: [...state.filters, ...found] });
    if (!wrong) setText("");
  };
  const remove = (place) => { onChange({ filters: state.filters.filter((_, index) => index !== place) }); input.current.focus(); };
  const backspace = (event) => { if (event.key === "Backspace" && !text && state.filters.length) remove(state.filters.length - 1); };
  const shown = problem || error;
  return html`<section class="bar" aria-label="What is shown">
    <form class="filter ${shown ? "wrong" : ""}" role="search" onSubmit=${submit} onClick=${() => input.current.focus()}>
      <ul class="chips" aria-label="Filters">${state.filters.map((filter, place) => html`<li class="chip ${filter.not ? "not" : ""}">
        <span>${filter.not ? "not " : ""}<b>${filter.name}</b> ${filter.value}</span>
        <button type="button" onClick=${() => remove(place)} aria-label=${`Remove filter ${filter.not ? "not " : ""}${filter.name} ${filter.value}`}><${Icon} name="close" size="12" /></button></li>`)}</ul>
      <input ref=${input} id="filter" list="filter-names" aria-label="Add a filter" aria-describedby="filter-problem" aria-invalid=${Boolean(shown)} autocomplete="off" spellcheck=${false}
        placeholder=${state.filters.length ? "and …" : "Filter: namespace=shop verdict=DROPPED not port=53"} value=${text} onKeyDown=${backspace}
        onInput=${(event) => { setText(event.target.value); setProblem(""); }} />
      <datalist id="filter-names">${known.list.map((filter) => html`<option value=${`${filter.name}=`}>${filter.help}</option>`)}</datalist>
    </form>
    <div class="segments" role="group" aria-label="Verdict">${[["all", "All"], ["passed", "Passed"], ["refused", "Refused"]].map(
      ([value, name]) => html`<button aria-pressed=${state.verdict === value} class=${value} onClick=${() => onChange({ verdict: value })}>${name}</button>`)}</div>
    <label><span class="hidden">Group by</span><select value=${state.by} onChange=${(event) => onChange({ by: event.target.value, selected: null })}>
      ${GROUPS.map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></label>
    <div class="segments" role="group" aria-label="View">${[["map", "Map"], ["table", "Table"]].map(
      ([value, name]) => html`<button aria-pressed=${state.view === value} onClick=${() => onChange({ view: value })}>${name}</button>`)}</div>
    <p id="filter-problem" class="problem" role="alert">${shown}</p>
  </section>`;
}

// Traffic over time; dragging over it chooses a range.
export function Timeline({ timeline, onRange }) {
  const [drag, setDrag] = useState(null);
  if (!timeline) return html`<div class="timeline"></div>`;
  const bars = timeline.passed.length;
  const most = Math.max(1, ...timeline.passed.map((passed, place) => passed + timeline.refused[place]));
  const span = timeline.step * bars;
  const total = (list) => list.reduce((sum, value) => sum + value, 0);
  const at = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  };
  const end = (event) => {
    if (!drag) return;
    const [from, to] = [drag.from, at(event)].sort((a, b) => a - b);
    setDrag(null);
    if (to - from > 0.01) onRange(timeline.start + from * span, timeline.start + to * span);
  };
  const scale = (value) => (value ? Math.max(0.06, Math.sqrt(value / most)) * 30 : 0);
  return html`<div class="timeline">
    <svg viewBox=${`0 0 ${bars * 4} 34`} preserveAspectRatio="none" role="img"
      aria-label=${`Traffic over time: ${count(total(timeline.passed))} passed, ${count(total(timeline.refused))} refused, from ${moment(timeline.start, span)} to ${moment(timeline.start + span, span)}`}
      onPointerDown=${(event) => { event.currentTarget.setPointerCapture(event.pointerId); setDrag({ from: at(event), to: at(event) }); }}
      onPointerMove=${(event) => drag && setDrag({ ...drag, to: at(event) })} onPointerUp=${end} onPointerCancel=${() => setDrag(null)}>
      <rect class="ground" width=${bars * 4} height="34" />
      ${timeline.passed.map((passed, place) => {
        const [all, bad] = [scale(passed + timeline.refused[place]), scale(timeline.refused[place])];
        return html`${all > 0 && html`<rect class="passed" x=${place * 4 + 0.5} y=${32 - all} width="3" height=${all} />`}${bad > 0 && html`<rect class="refused" x=${place * 4 + 0.5} y=${32 - bad} width="3" height=${bad} />`}`;
      })}
      ${drag && html`<rect class="brush" x=${Math.min(drag.from, drag.to) * bars * 4} width=${Math.abs(drag.to - drag.from) * bars * 4} height="34" />`}
    </svg>
    <div class="ends"><span>${moment(timeline.start, span)}</span><span class="hint">drag to choose a range</span><span>${moment(timeline.start + span, span)}</span></div>
  </div>`;
}
