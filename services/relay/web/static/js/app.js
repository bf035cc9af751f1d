// The page: one state, kept in the address bar; what the relay says about it; what is drawn of that.
import { html, render, useEffect, useMemo, useRef, useState } from "/vendor/htm-preact.js";
import { follow, get } from "/js/api.js";
import { FilterBar, Header, Timeline } from "/js/controls.js";
import { Details, nameOf } from "/js/details.js";
import { fromHash, selectionParams, toHash, toParams } from "/js/filters.js";
import { plural } from "/js/format.js";
import { ServiceMap } from "/js/map.js";
import { ConnectionTable, FlowTable } from "/js/tables.js";

const START = { filters: [], by: "workload", verdict: "all", view: "map", window: 300, since: 0, until: 0, selected: null };
const KEPT = 300; // flows in the table

function usePageState() {
  const [state, setState] = useState(() => fromHash(location.hash, START));
  useEffect(() => {
    const read = () => setState(fromHash(location.hash, START));
    addEventListener("hashchange", read);
    return () => removeEventListener("hashchange", read);
  }, []);
  const change = (part) => setState((before) => ({ ...before, ...part }));
  useEffect(() => { if (state.selected?.type !== "flow") history.replaceState(null, "", toHash(state)); }, [state]);
  return [state, change];
}

function useVisible() {
  const [visible, setVisible] = useState(!document.hidden);
  useEffect(() => {
    const told = () => setVisible(!document.hidden);
    document.addEventListener("visibilitychange", told);
    return () => document.removeEventListener("visibilitychange", told);
  }, []);
  return visible;
}

// Asks once, so that a wrong filter is told; then follows, where that is wanted.
function useFeed(path, query, live, handlers) {
  const [error, setError] = useState(null);
  const [connected, setConnected] = useState(null);
  const current = useRef(handlers);
  current.current = handlers;
  useEffect(() => {
    const stop = new AbortController();
    let close = () => {};
    let timer = 0;
    const start = async () => {
      try {
        const found = await get(path, query, stop.signal);
        current.current.first(found);
        setError(null);
        setConnected(true);
        if (stop.signal.aborted || !live) return;
        const events = Object.keys(current.current.events).map((name) => [name, (data) => current.current.events[name](data)]);
        const from = found.position === undefined ? query : `${query}&position=${found.position}`;
        close = follow(`${path}/stream`, from, { ...Object.fromEntries(events), state: setConnected });
      } catch (problem) {
        if (problem.name === "AbortError") return;
        if (problem.code === "unreachable") { setConnected(false); timer = setTimeout(start, 2000); }
        setError(problem);
      }
    };
    start();
    return () => { stop.abort(); close(); clearTimeout(timer); };
  }, [path, query, live]);
  return { error, connected };
}

function App() {
  const [state, change] = usePageState();
  const [known, setKnown] = useState({ list: [], names: new Set() });
  const [status, setStatus] = useState(null);
  const [graph, setGraph] = useState(null);
  const [flows, setFlows] = useState({ list: [], skipped: 0 });
  const [paused, setPaused] = useState(false);
  const visible = useVisible();
  const live = !state.since && !paused && visible;

  useEffect(() => {
    get("/api/v1/filters").then(({ filters }) => setKnown({ list: filters, names: new Set(filters.map((filter) => filter.name)) })).catch(() => {});
    get("/api/v1/status").then(setStatus).catch(() => {});
  }, []);

  const query = useMemo(() => toParams(state).toString(), [state.filters, state.verdict, state.by, state.window, state.since, state.until]);
  const focus = state.selected?.type === "flow" ? state.selected.within : state.selected;
  const flowQuery = useMemo(() => {
    const params = new URLSearchParams(query);
    for (const [name, value] of Object.entries(selectionParams(focus))) params.set(name, value);
    params.set("limit", "100");
    return params.toString();
  }, [query, focus?.id]);

  const map = useFeed("/api/v1/graph", query, live, { first: setGraph, events: { graph: setGraph, status: setStatus } });
  const table = useFeed("/api/v1/flows", flowQuery, live, {
    first: ({ flows: found }) => setFlows({ list: found.reverse(), skipped: 0 }),
    events: { flows: ({ flows: found, skipped, missed }) => setFlows((before) => {
      const fresh = found.reverse().filter((flow) => !before.list.some((each) => each.id === flow.id));
      return { list: [...fresh, ...before.list].slice(0, KEPT), skipped: before.skipped + skipped + missed };
    }) },
  });

  const select = (selected) => change({ selected: selected?.type === "flow" ? { ...selected, within: focus } : selected });
  const addFilter = (filter) => change({ filters: [...state.filters, filter], selected: null });
  const nodes = new Map((graph?.nodes ?? []).map((node) => [node.id, node]));
  const title = focus?.type === "node" ? `of ${nameOf(focus.id, nodes)}`
    : focus?.type === "edge" ? `${nameOf(focus.source, nodes)} → ${nameOf(focus.destination, nodes)}` : "";
  const error = map.error ?? table.error;
  const told = graph ? `${plural(graph.nodes.length, "node")}, ${plural(graph.edges.length, "connection")}` : "";

  return html`<a class="skip" href="#filter" onClick=${(event) => { event.preventDefault(); document.getElementById("filter").focus(); }}>To the filters</a>
    <${Header} status=${status} state=${state} connected=${map.connected} paused=${paused} onPause=${setPaused} onChange=${change} />
    <${FilterBar} state=${state} known=${known} error=${error ? error.message : ""} onChange=${change} />
    <main class=${state.selected ? "with-details" : ""}>
      <h1 class="hidden">Service map</h1>
      <p class="hidden" role="status" aria-live="polite">${told}</p>
      <section class="stage" aria-label="Service map">
        <${Timeline} timeline=${graph?.timeline} onRange=${(since, until) => change({ since: Math.round(since * 1000) / 1000, until: Math.round(until * 1000) / 1000 })} />
        ${state.view === "map" ? html`<${ServiceMap} graph=${graph} selected=${focus} onSelect=${select} />`
          : html`<${ConnectionTable} graph=${graph} selected=${focus} onSelect=${select} />`}
        ${graph && !graph.edges.length && html`<div class="nothing"><p><b>No traffic here.</b></p><p class="muted">${state.filters.length || state.verdict !== "all"
          ? "Nothing passes these filters in this time range." : "Nobody has talked to anybody in this time range."}</p></div>`}
        ${graph?.folded > 0 && html`<p class="folded">${plural(graph.folded, "smaller connection")} not drawn: filter, or group by namespace</p>`}
      </section>
      ${state.selected && html`<${Details} graph=${graph} selected=${state.selected} onSelect=${select} onFilter=${addFilter} />`}
      <${FlowTable} flows=${flows.list} skipped=${flows.skipped} selected=${state.selected} onSelect=${select} title=${title} />
    </main>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
