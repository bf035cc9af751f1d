// Where things stand on the map. A small graph is laid out in the order of calls, with room for its edges and their
// labels. A large one is packed: each namespace in columns, the namespaces in rows, in the shape of the screen; a layered
// layout of hundreds of workloads is a ribbon that nobody can read.
import { Graph, layout } from "/vendor/dagre.js";

const NODE = { width: 188, height: 50 };
const BOX = { padding: 16, title: 26 };
const SMALL = { nodes: 40, edges: 70, labels: 30 };
const LABEL = { width: 104, height: 22 };
const SPACE = 44;
const SHAPE = 1.7;

// How deep each thing stands in the order of calls; a cycle is cut where it is met again.
function depths(ids, edges) {
  const calls = new Map(ids.map((id) => [id, []]));
  const called = new Set();
  for (const { source, destination } of edges) {
    if (source === destination || !calls.has(source) || !calls.has(destination)) continue;
    calls.get(source).push(destination);
    called.add(destination);
  }
  const found = new Map();
  let front = ids.filter((id) => !called.has(id));
  for (let depth = 0; found.size < ids.length; depth += 1) {
    if (!front.length) front = [ids.find((id) => !found.has(id))];
    const next = new Set();
    for (const id of front) if (!found.has(id)) found.set(id, depth);
    for (const id of front) for (const other of calls.get(id)) if (!found.has(other)) next.add(other);
    front = [...next];
  }
  return found;
}

// The members of a namespace in columns, callers to the left.
function columns(members, edges) {
  const cell = { width: NODE.width + 34, height: NODE.height + 20 };
  const across = Math.max(1, Math.round(Math.sqrt((members.length * cell.height * SHAPE) / cell.width)));
  const down = Math.ceil(members.length / across);
  const deep = depths(members, edges);
  const ordered = [...members].sort((a, b) => deep.get(a) - deep.get(b) || (a < b ? -1 : 1));
  const places = new Map(ordered.map((id, place) => [id, { x: Math.floor(place / down) * cell.width, y: (place % down) * cell.height }]));
  const used = Math.ceil(members.length / down);
  return { places, width: used * cell.width - 34, height: down * cell.height - 20 };
}

function shelves(boxes, limit) {
  let [x, y, row, width] = [0, 0, 0, 0];
  const places = boxes.map((box) => {
    if (x > 0 && x + box.width > limit) { x = 0; y += row + SPACE; row = 0; }
    const place = { x, y };
    x += box.width + SPACE;
    width = Math.max(width, x - SPACE);
    row = Math.max(row, box.height);
    return place;
  });
  return { places, width, height: y + row };
}

// Boxes in rows; of several widths the one that is shown largest.
function rows(boxes, aspect) {
  const least = Math.max(...boxes.map((box) => box.width));
  const most = boxes.reduce((sum, box) => sum + box.width + SPACE, 0);
  let best = null;
  for (let step = 0; step <= 40; step += 1) {
    const found = shelves(boxes, least + ((most - least) * step) / 40);
    const scale = Math.min(aspect / found.width, 1 / found.height);
    if (!best || scale > best.scale) best = { ...found, scale };
  }
  boxes.forEach((box, place) => Object.assign(box, best.places[place]));
  return { width: best.width, height: best.height };
}

function packed({ nodes, edges, aspect }) {
  const groups = new Map();
  for (const node of nodes) groups.set(node.namespace, [...(groups.get(node.namespace) ?? []), node.id]);
  const home = new Map(nodes.map((node) => [node.id, node.namespace]));
  const between = edges.map((edge) => ({ source: home.get(edge.source), destination: home.get(edge.destination) }));
  const deep = depths([...groups.keys()], between);
  const boxes = [...groups].map(([name, members]) => {
    const inside = columns(members, edges);
    const pad = name ? BOX.padding : 0;
    const top = name ? BOX.title : 0;
    return { name, ...inside, inner: inside, pad, top, width: inside.width + 2 * pad, height: inside.height + 2 * pad + top };
  });
  // What is outside of the cluster comes last, the namespaces in the order of calls, large ones before small ones.
  boxes.sort((a, b) => !a.name - !b.name || deep.get(a.name) - deep.get(b.name) || b.height - a.height || (a.name < b.name ? -1 : 1));
  const size = rows(boxes, aspect);
  const at = {};
  for (const box of boxes) for (const [id, place] of box.inner.places) at[id] = { x: box.x + box.pad + place.x, y: box.y + box.pad + box.top + place.y };
  const frames = boxes.filter((box) => box.name).map(({ name, x, y, width, height }) => ({ id: `ns:${name}`, name, x, y, width, height }));
  return { at, frames, routes: {}, node: NODE, ...size };
}

// All at once: edges bend round nodes, and have points of their own.
function whole({ nodes, edges, aspect }) {
  const graph = new Graph({ compound: true });
  graph.setGraph({ rankdir: aspect < 0.95 ? "TB" : "LR", acyclicer: "greedy", ranksep: edges.length > SMALL.labels ? 60 : 26, nodesep: 26, edgesep: 22 });
  const spaces = new Set(nodes.map((node) => node.namespace).filter(Boolean));
  for (const name of spaces) graph.setNode(`ns:${name}`, {});
  for (const node of nodes) {
    graph.setNode(node.id, { ...NODE });
    if (node.namespace) graph.setParent(node.id, `ns:${node.namespace}`);
  }
  const label = edges.length > SMALL.labels ? { width: 0, height: 0 } : { ...LABEL, labelpos: "c" };
  for (const edge of edges) if (edge.source !== edge.destination) graph.setEdge(edge.source, edge.destination, { ...label, weight: edge.weight });
  layout(graph);
  const at = {};
  for (const node of nodes) {
    const found = graph.node(node.id);
    at[node.id] = { x: found.x - NODE.width / 2, y: found.y - NODE.height / 2 };
  }
  const frames = [...spaces].map((name) => frame(name, nodes.filter((node) => node.namespace === name).map((node) => at[node.id])));
  const routes = {};
  for (const edge of graph.edges()) {
    const { points, x, y } = graph.edge(edge);
    routes[`${edge.v}|${edge.w}`] = { points, x: x ?? points[points.length >> 1].x, y: y ?? points[points.length >> 1].y };
  }
  return shifted({ at, frames, routes });
}

function frame(name, places) {
  const [left, top] = [Math.min(...places.map((at) => at.x)), Math.min(...places.map((at) => at.y))];
  const [right, bottom] = [Math.max(...places.map((at) => at.x)) + NODE.width, Math.max(...places.map((at) => at.y)) + NODE.height];
  const { padding, title } = BOX;
  return { id: `ns:${name}`, name, x: left - padding, y: top - padding - title, width: right - left + 2 * padding, height: bottom - top + 2 * padding + title };
}

// The corner of everything at 0, 0.
function shifted({ at, frames, routes }) {
  const nodes = Object.values(at).map((place) => ({ ...place, ...NODE }));
  const bends = Object.values(routes).flatMap((route) => route.points.map((point) => ({ ...point, width: 0, height: 0 })));
  const all = [...nodes, ...frames, ...bends];
  const [left, top] = [Math.min(...all.map((each) => each.x)), Math.min(...all.map((each) => each.y))];
  const move = (place) => { place.x -= left; place.y -= top; };
  Object.values(at).forEach(move);
  frames.forEach(move);
  Object.values(routes).forEach((route) => { move(route); route.points.forEach(move); });
  const width = Math.max(...all.map((each) => each.x + each.width)) - left;
  const height = Math.max(...all.map((each) => each.y + each.height)) - top;
  return { at, frames, routes, width, height, node: NODE };
}

function place(data) {
  if (!data.nodes.length) return { at: {}, frames: [], routes: {}, width: 1, height: 1, node: NODE };
  if (data.nodes.length <= SMALL.nodes && data.edges.length <= SMALL.edges) return whole(data);
  return packed(data);
}

onmessage = ({ data }) => postMessage({ key: data.key, ...place(data) });
