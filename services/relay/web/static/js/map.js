// The service map: SVG, so that every node is an element that keyboards and screen readers reach.
import { html, useEffect, useMemo, useRef, useState } from "/vendor/htm-preact.js";
import { count, milliseconds, plural, rate } from "/js/format.js";
import { Icon } from "/js/icons.js";

const MAX_LABELS = 30; // more at once is noise; those of the selection are always there
const trusted = globalThis.trustedTypes?.createPolicy("ciliate", { createScriptURL: (url) => url });
const workerUrl = "/js/layout-worker.js";

// Layout happens beside the page's thread and is asked for only when nodes or edges come or go.
function useLayout(graph, shape) {
  const [layout, setLayout] = useState(null);
  const worker = useRef(null);
  const key = useMemo(
    () => (graph ? JSON.stringify([graph.nodes.map((node) => node.id), graph.edges.map((edge) => edge.id)]) : ""),
    [graph],
  );
  useEffect(() => {
    worker.current = new Worker(trusted ? trusted.createScriptURL(workerUrl) : workerUrl, { type: "module" });
    worker.current.onmessage = ({ data }) => setLayout(data);
    return () => worker.current.terminate();
  }, []);
  useEffect(() => {
    if (!graph) return;
    const nodes = graph.nodes.map(({ id, namespace, kind }) => ({ id, namespace: kind === "namespace" ? "" : namespace }));
    // What is refused, or comes back from outside, bends round the rest, not the rest round it.
    const weight = ({ source, verdict }) => (verdict === "refused" ? 1 : /^(reserved|name|cidr):/.test(source) ? 2 : 4);
    const edges = graph.edges.map((edge) => ({ source: edge.source, destination: edge.destination, weight: weight(edge) }));
    worker.current.postMessage({ key, nodes, edges, aspect: shape() });
  }, [key]);
  return layout;
}

const clip = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

export function subtitle(node) {
  if (node.kind === "workload") return node.detail;
  if (node.kind === "name") return "DNS name outside";
  if (node.kind === "cidr") return "network";
  if (node.kind === "reserved") return { world: "outside the cluster", host: "a node itself", "remote-node": "another node" }[node.name] ?? "reserved identity";
  return node.kind === "unknown" ? "not readable" : node.kind;
}

export function describe(node) {
  const where = node.namespace && node.kind !== "namespace" ? ` in ${node.namespace}` : "";
  const refused = node.refused ? `, ${count(node.refused)} refused` : "";
  return `${node.name}${where}, ${subtitle(node)}: ${plural(node.outgoing, "outgoing connection")}, ${count(node.incoming)} incoming${refused}`;
}

function ends(from, to, node) {
  const middle = (at) => ({ left: at.x, right: at.x + node.width, y: at.y + node.height / 2 });
  return [middle(from), middle(to)];
}

const routed = d3.line((point) => point.x, (point) => point.y).curve(d3.curveBasis);

// The curve of an edge and its middle. Forwards it leaves on the right and arrives on the left; backwards it swings round.
function curve(from, to, node, route) {
  if (route) {
    const points = route.points.map((point) => ({ ...point }));
    const last = points[points.length - 1];
    if (Math.abs(last.x - to.x) < 1) last.x -= 5; // the arrow's head ends at the card, not in it
    return { path: routed(points), x: route.x, y: route.y };
  }
  const [a, b] = ends(from, to, node);
  if (from === to) {
    const top = from.y;
    const x = a.right - 34;
    return { path: `M${x} ${top} C${x} ${top - 34} ${x + 30} ${top - 34} ${x + 30} ${top - 4}`, x: x + 15, y: top - 26 };
  }
  if (b.left >= a.right + 16) {
    const bend = Math.max(36, Math.min(160, (b.left - a.right) / 2));
    return cubic(a.right, a.y, a.right + bend, a.y, b.left - 6 - bend, b.y, b.left - 6, b.y);
  }
  if (b.right + 16 <= a.left) {
    const bend = Math.max(36, Math.min(160, (a.left - b.right) / 2));
    const lift = Math.abs(a.y - b.y) < 8 ? 34 : 0;
    return cubic(a.left, a.y + (lift ? 10 : 0), a.left - bend, a.y + lift, b.right + 6 + bend, b.y + lift, b.right + 6, b.y + (lift ? 10 : 0));
  }
  const out = Math.max(a.right, b.right) + 46 + Math.min(60, Math.abs(a.y - b.y) / 6);
  return cubic(a.right, a.y, out, a.y, out, b.y, b.right + 6, b.y);
}

function cubic(x0, y0, x1, y1, x2, y2, x3, y3) {
  const middle = (p, q, r, s) => (p + 3 * q + 3 * r + s) / 8;
  return { path: `M${x0} ${y0} C${x1} ${y1} ${x2} ${y2} ${x3} ${y3}`, x: middle(x0, x1, x2, x3), y: middle(y0, y1, y2, y3) };
}

function edgeText(edge) {
  if (edge.verdict === "refused") return `✕ ${count(edge.refused)} refused`;
  const latency = edge.http?.latency_ms?.p50 ?? edge.rtt_ms?.p50;
  const parts = [rate(edge.rate)];
  if (latency !== undefined && latency !== null) parts.push(milliseconds(latency));
  if (edge.refused) parts.push(`✕ ${count(edge.refused)}`);
  return parts.join(" · ");
}

function Edge({ edge, from, to, node, route, state, labelled, onSelect }) {
  const { path, x, y } = curve(from, to, node, route);
  const width = Math.min(5, 1.4 + Math.log10(1 + edge.rate * 10) * 0.9);
  const text = edgeText(edge);
  const half = text.length * 3.3 + 9;
  return html`<g class="edge ${edge.verdict} ${state}" data-edge=${edge.id} onClick=${(event) => { event.stopPropagation(); onSelect(edge); }}>
    <path class="touch" d=${path} />
    <path class="line" d=${path} stroke-width=${width} marker-end=${`url(#arrow-${edge.verdict})`} />
    ${edge.verdict === "mixed" && html`<path class="line overlay" d=${path} stroke-width=${width} />`}
    ${labelled && html`<g class="tag" transform=${`translate(${x} ${y})`}>
      <rect x=${-half} y="-10" width=${2 * half} height="20" rx="10" /><text dy="4">${text}</text>
    </g>`}
  </g>`;
}

function Badge({ text, x, far }) {
  const width = text.length * 6.6 + 8;
  if (far) return html`<g class="badge"><circle cx=${x} cy="3" r="10" /></g>`;
  return html`<g class="badge"><rect x=${x - width} y="-7" width=${width} height="18" rx="9" /><text x=${x - width / 2} y="6">${text}</text></g>`;
}

function Node({ node, at, size, far, state, focusable, onSelect, onKey, focusRef }) {
  return html`<g class="node kind-${node.kind} ${node.refused ? "has-refused" : ""} ${state}" role="button" aria-label=${describe(node)}
      aria-pressed=${state.includes("selected")} tabindex=${focusable ? 0 : -1} data-node=${node.id} ref=${focusRef}
      transform=${`translate(${at.x} ${at.y})`} onClick=${(event) => { event.stopPropagation(); onSelect(node); }} onKeyDown=${(event) => onKey(event, node)}>
    <rect class="card" width=${size.width} height=${size.height} rx="10" />
    <rect class="mark" x="9" y="10" width="30" height="30" rx="8" />
    <${Icon} name=${node.kind === "reserved" ? node.name : node.kind} x="15" y="16" size="18" />
    <text class="name" x="48" y="22">${clip(node.name, far ? 13 : 18)}</text>
    <text class="sub" x="48" y="38">${clip(subtitle(node), 22)}</text>
    ${node.refused > 0 && html`<${Badge} text=${`✕ ${count(node.refused)}`} x=${size.width - 6} far=${far} />`}
    <title>${node.namespace ? `${node.namespace}/` : ""}${node.name}</title>
  </g>`;
}

// The node that an arrow key means: the nearest one in that direction.
function towards(key, id, layout, nodes) {
  const from = layout.at[id];
  const [dx, dy] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[key];
  let best = null;
  let least = Infinity;
  for (const node of nodes) {
    const at = layout.at[node.id];
    if (!at || node.id === id) continue;
    const along = (at.x - from.x) * dx + (at.y - from.y) * dy;
    const across = Math.abs((at.x - from.x) * dy) + Math.abs((at.y - from.y) * dx);
    if (along > 4 && along + 2.5 * across < least) { best = node; least = along + 2.5 * across; }
  }
  return best;
}

export function ServiceMap({ graph, selected, onSelect }) {
  const svg = useRef(null);
  const layout = useLayout(graph, () => {
    const box = svg.current.getBoundingClientRect();
    return Math.min(4, Math.max(0.5, box.width / Math.max(1, box.height)));
  });
  const zoom = useRef(null);
  const touched = useRef(false);
  const [view, setView] = useState({ x: 0, y: 0, k: 1 });
  const [active, setActive] = useState("");
  const [hovered, setHovered] = useState("");
  const elements = useRef(new Map());

  const fit = (gently) => {
    const box = svg.current?.getBoundingClientRect();
    if (!layout || !box?.width) return;
    const k = Math.max(0.05, Math.min(1.15, (box.width - 56) / layout.width, (box.height - 88) / layout.height));
    const place = d3.zoomIdentity.translate((box.width - layout.width * k) / 2, (box.height - 52 - layout.height * k) / 2 + 6).scale(k);
    const still = !gently || matchMedia("(prefers-reduced-motion: reduce)").matches;
    const target = d3.select(svg.current);
    (still ? target : target.transition().duration(250)).call(zoom.current.transform, place);
  };

  useEffect(() => {
    zoom.current = d3.zoom().scaleExtent([0.05, 3]).on("zoom", ({ transform, sourceEvent }) => {
      if (sourceEvent) touched.current = true;
      setView({ x: transform.x, y: transform.y, k: transform.k });
    });
    d3.select(svg.current).call(zoom.current).on("dblclick.zoom", null);
    const observer = new ResizeObserver(() => { if (!touched.current) fit(false); });
    observer.observe(svg.current);
    return () => observer.disconnect();
  }, [layout]);
  useEffect(() => { if (!touched.current) fit(false); }, [layout]);

  const nodes = (graph?.nodes ?? []).filter((node) => layout?.at[node.id]);
  const known = new Set(nodes.map((node) => node.id));
  const edges = (graph?.edges ?? []).filter((edge) => known.has(edge.source) && known.has(edge.destination));
  const focus = selected?.type === "node" ? selected.id : hovered;
  const near = new Set(focus ? edges.filter((edge) => edge.source === focus || edge.destination === focus).flatMap((edge) => [edge.source, edge.destination]) : []);
  if (selected?.type === "edge") { near.add(selected.source); near.add(selected.destination); }
  const edgeState = (edge) => {
    if (selected?.type === "edge") return edge.id === selected.id ? "selected" : "faded";
    if (!focus) return "";
    return edge.source === focus || edge.destination === focus ? "near" : "faded";
  };
  const nodeState = (node) => {
    if (selected?.id === node.id) return "selected";
    return near.size && !near.has(node.id) && node.id !== focus ? "faded" : "";
  };
  const first = known.has(active) ? active : selected && known.has(selected.id) ? selected.id : nodes[0]?.id;

  const onKey = (event, node) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); onSelect({ type: "node", id: node.id }); }
    if (event.key === "Escape") onSelect(null);
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const next = towards(event.key, node.id, layout, nodes);
    if (!next) return;
    setActive(next.id);
    elements.current.get(next.id)?.focus({ preventScroll: true });
    show(layout.at[next.id]);
  };
  const show = (at) => {
    const box = svg.current.getBoundingClientRect();
    const [x, y] = [at.x * view.k + view.x, at.y * view.k + view.y];
    if (x < 20 || y < 20 || x + layout.node.width * view.k > box.width - 20 || y + layout.node.height * view.k > box.height - 20)
      d3.select(svg.current).call(zoom.current.translateTo, at.x + layout.node.width / 2, at.y + layout.node.height / 2);
  };
  const zoomBy = (factor) => { touched.current = true; d3.select(svg.current).call(zoom.current.scaleBy, factor); };
  const refused = edges.filter((edge) => edge.refused).length;

  return html`<div class="map">
    <svg ref=${svg} role="group" aria-label=${`Service map: ${plural(nodes.length, "node")}, ${plural(edges.length, "connection")}, ${count(refused)} with refusals. Arrow keys move between nodes, Enter shows one.`}
        onClick=${() => onSelect(null)}>
      <defs>${["passed", "refused", "mixed", "audited"].map((verdict) => html`<marker id=${`arrow-${verdict}`} class=${`arrow ${verdict}`} viewBox="0 0 8 8" refX="5.5" refY="4"
        markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto-start-reverse"><path d="M0 .6 7.4 4 0 7.4 1.8 4Z" /></marker>`)}</defs>
      <g transform=${`translate(${view.x} ${view.y}) scale(${view.k})`} class="${view.k < 0.62 ? "far" : ""} ${edges.length > 150 ? "dense" : ""}">
        ${layout?.frames.map((frame) => html`<g class="frame" key=${frame.id} transform=${`translate(${frame.x} ${frame.y})`}>
          <rect width=${frame.width} height=${frame.height} rx="16" /><text x="16" y="24">${clip(frame.name, 40)}</text></g>`)}
        ${edges.map((edge) => html`<${Edge} key=${edge.id} edge=${edge} from=${layout.at[edge.source]} to=${layout.at[edge.destination]} node=${layout.node} route=${layout.routes[edge.id]} state=${edgeState(edge)}
          labelled=${(edges.length <= MAX_LABELS && edgeState(edge) !== "faded") || ["near", "selected"].includes(edgeState(edge))}
          onSelect=${() => onSelect({ type: "edge", id: edge.id, source: edge.source, destination: edge.destination })} />`)}
        ${nodes.map((node) => html`<${Node} key=${node.id} node=${node} at=${layout.at[node.id]} size=${layout.node} far=${view.k < 0.62} state=${nodeState(node)} focusable=${node.id === first}
          focusRef=${(element) => (element ? elements.current.set(node.id, element) : elements.current.delete(node.id))}
          onSelect=${() => { setActive(node.id); onSelect({ type: "node", id: node.id }); }} onKey=${onKey} />`)}
      </g>
    </svg>
    <div class="zoom" role="group" aria-label="Zoom">
      <button class="icon" onClick=${() => zoomBy(1.3)} aria-label="Closer" title="Closer"><${Icon} name="plus" size="16" /></button>
      <button class="icon" onClick=${() => zoomBy(1 / 1.3)} aria-label="Farther" title="Farther"><${Icon} name="minus" size="16" /></button>
      <button class="icon" onClick=${() => { touched.current = false; fit(true); }} aria-label="Show everything" title="Show everything"><${Icon} name="fit" size="16" /></button>
    </div>
    <ul class="legend" aria-label="Legend">
      <li><span class="swatch passed"></span>passed</li><li><span class="swatch refused"></span>refused</li>
      <li><span class="swatch mixed"></span>partly refused</li><li><span class="swatch audited"></span>audited</li>
    </ul>
  </div>`;
}

