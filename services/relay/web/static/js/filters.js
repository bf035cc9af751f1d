// The filters of the command line, as chips: {name, value, not}. Text of `ciliate observe` may be pasted as it is.
const WORD = /(?:[^\s"']+|"[^"]*"|'[^']*')+/g;

const unquote = (text) => text.replace(/["']/g, "");

export function parseFilters(text, known) {
  const words = (text.match(WORD) ?? []).map(unquote);
  const found = [];
  let not = false;
  while (words.length) {
    let word = words.shift();
    if (word === "--not" || word === "not" || word === "!") { not = true; continue; }
    if (word.startsWith("!")) { not = true; word = word.slice(1); }
    if (word.startsWith("not.")) { not = true; word = word.slice(4); }
    const dashed = word.startsWith("-");
    word = word.replace(/^-+/, "");
    let [name, ...rest] = word.split("=");
    let value = rest.join("=");
    if (!rest.length && dashed && words.length) value = words.shift();
    if (!known.has(name) && !rest.length && !dashed) { value = name; name = "pod"; }
    if (!known.has(name)) return { error: `${name} is no filter. Try pod, namespace, verdict, port, http-path …`, found };
    if (!value) return { error: `${name} needs a value: ${name}=…`, found };
    found.push({ name, value, not });
    not = false;
  }
  return { found };
}

export function toParams(state) {
  const params = new URLSearchParams();
  for (const { name, value, not } of state.filters) params.append(not ? `not.${name}` : name, value);
  if (state.verdict === "refused") params.append("verdict", "DROPPED");
  if (state.verdict === "passed") params.append("not.verdict", "DROPPED");
  params.set("by", state.by);
  if (state.since) {
    params.set("since", String(state.since));
    params.set("until", String(state.until));
  } else {
    params.set("window", String(state.window));
  }
  return params;
}

export function selectionParams(selected) {
  if (!selected) return {};
  if (selected.type === "node") return { group: selected.id };
  if (selected.type === "edge") return { source: selected.source, destination: selected.destination };
  return {};
}

// The address bar holds what is shown, so that a link shows the same.
export function toHash(state) {
  const params = new URLSearchParams();
  for (const { name, value, not } of state.filters) params.append("f", `${not ? "!" : ""}${name}=${value}`);
  for (const key of ["by", "verdict", "view", "since", "until"]) if (state[key]) params.set(key, String(state[key]));
  params.set("window", String(state.window));
  if (state.selected?.type === "node") params.set("node", state.selected.id);
  if (state.selected?.type === "edge") params.set("edge", state.selected.id);
  return `#${params}`;
}

export function fromHash(hash, fallback) {
  const params = new URLSearchParams(hash.replace(/^#/, ""));
  const filters = params.getAll("f").map((text) => {
    const not = text.startsWith("!");
    const [name, ...value] = text.slice(not ? 1 : 0).split("=");
    return { name, value: value.join("="), not };
  });
  const numbers = (name) => (Number(params.get(name)) > 0 ? Number(params.get(name)) : 0);
  const pick = (name, values, otherwise) => (values.includes(params.get(name)) ? params.get(name) : otherwise);
  let selected = null;
  if (params.get("node")) selected = { type: "node", id: params.get("node") };
  if (params.get("edge")) {
    const [source, destination] = params.get("edge").split("|");
    selected = { type: "edge", id: params.get("edge"), source, destination };
  }
  return {
    ...fallback,
    filters,
    selected,
    by: pick("by", ["workload", "pod", "namespace", "identity"], fallback.by),
    verdict: pick("verdict", ["all", "passed", "refused"], "all"),
    view: pick("view", ["map", "table"], "map"),
    window: numbers("window") || fallback.window,
    since: numbers("until") ? numbers("since") : 0,
    until: numbers("until"),
  };
}
