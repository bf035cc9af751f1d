// Flows one by one, and the map as a table for whoever prefers one.
import { html } from "/vendor/htm-preact.js";
import { bytes, count, milliseconds, plural, policyName, rate, side, time, verdictClass, verdictWord } from "/js/format.js";
import { nameOf } from "/js/details.js";

const End = ({ end, port }) => {
  const { name, namespace, title } = side(end, port);
  return html`<span title=${title}>${namespace && html`<span class="muted">${namespace}/</span>`}${name}</span>`;
};

function what(flow) {
  if (flow.http) return `${flow.http.method} ${flow.http.url.replace(/^https?:\/\/[^/]*/, "") || "/"}${flow.http.code ? ` → ${flow.http.code}` : ""}`;
  if (flow.dns) return `DNS ${flow.dns.query}`;
  const traffic = flow.traffic ? `${milliseconds(flow.traffic.duration_ms)}, ${bytes(flow.traffic.bytes + flow.traffic.reply_bytes)}` : "";
  const told = { new: "opened", close: `closed after ${traffic}`, update: `open for ${traffic}`, drop: "packet dropped", "verdict-change": "policy changed" }[flow.kind];
  return flow.protocol.startsWith("ICMP") || !told ? flow.summary.split(";")[0] : told;
}

function decision(flow) {
  if (!flow.explanation) return flow.reason ? flow.reason.replaceAll("_", " ").toLowerCase() : "";
  const policy = flow.explanation.policies?.[0];
  return verdictClass(flow.verdict) === "passed" ? (policy ? policyName(policy) : "") : `${flow.explanation.title}${policy ? ` · ${policyName(policy)}` : ""}`;
}

export function FlowTable({ flows, skipped, selected, onSelect, title }) {
  return html`<section class="flows" aria-labelledby="flows-title">
    <header><h2 id="flows-title">Flows</h2><span class="muted">${title}</span><span class="grow"></span>
      <span class="muted">${plural(flows.length, "flow")}, newest first${skipped ? `, ${count(skipped)} more passed by` : ""}</span></header>
    <div class="scroll" role="region" aria-label="Flows, newest first" tabindex="0">
      <table><thead><tr><th scope="col">Time</th><th scope="col">Verdict</th><th scope="col">From</th><th scope="col">To</th>
        <th scope="col">Port</th><th scope="col">What</th><th scope="col">Decided by</th></tr></thead>
      <tbody>${flows.map((flow) => html`<tr key=${flow.id + flow.kind} class="${verdictClass(flow.verdict)} ${selected?.id === flow.id ? "selected" : ""}"
          onClick=${() => onSelect({ type: "flow", id: flow.id, flow })}>
        <td><button class="link mono" aria-label=${`Flow at ${time(flow.time)}`}>${time(flow.time)}</button></td>
        <td><span class="pill ${verdictClass(flow.verdict)}">${flow.verdict.toLowerCase()}</span></td>
        <td><${End} end=${flow.source} port=${flow.source_port} /></td><td><${End} end=${flow.destination} port=${flow.destination_port} /></td>
        <td class="mono">${(flow.reply ? flow.source_port : flow.destination_port) ?? ""}${flow.protocol ? html`<span class="muted">/${flow.protocol}</span>` : ""}</td>
        <td class="what">${what(flow)}</td><td class="what">${decision(flow)}</td></tr>`)}</tbody></table>
      ${!flows.length && html`<p class="empty">No flows here. Widen the time range or remove a filter.</p>`}
    </div></section>`;
}

export function ConnectionTable({ graph, selected, onSelect }) {
  const nodes = new Map((graph?.nodes ?? []).map((node) => [node.id, node]));
  const end = (id) => html`${nodes.get(id)?.namespace && html`<span class="muted">${nodes.get(id).namespace}/</span>`}${nameOf(id, nodes)}`;
  return html`<div class="scroll connections" role="region" aria-label="Connections" tabindex="0"><table>
    <caption class="hidden">The service map as a table: one row per connection between two workloads</caption>
    <thead><tr><th scope="col">From</th><th scope="col">To</th><th scope="col">Verdict</th><th scope="col" class="number">Rate</th>
      <th scope="col" class="number">Refused</th><th scope="col" class="number">Latency p50</th><th scope="col" class="number">p99</th><th scope="col">Ports</th></tr></thead>
    <tbody>${(graph?.edges ?? []).map((edge) => {
      const latency = edge.http?.latency_ms ?? edge.rtt_ms;
      return html`<tr key=${edge.id} class="${edge.verdict} ${selected?.id === edge.id ? "selected" : ""}"
          onClick=${() => onSelect({ type: "edge", id: edge.id, source: edge.source, destination: edge.destination })}>
        <td><button class="link" aria-label=${`${nameOf(edge.source, nodes)} to ${nameOf(edge.destination, nodes)}`}>${end(edge.source)}</button></td><td>${end(edge.destination)}</td>
        <td><span class="pill ${edge.verdict}">${verdictWord[edge.verdict]}</span></td><td class="number">${rate(edge.rate)}</td>
        <td class="number">${edge.refused ? count(edge.refused) : ""}</td><td class="number">${milliseconds(latency?.p50)}</td>
        <td class="number">${milliseconds(latency?.p99)}</td><td class="mono">${edge.ports.map((port) => `${port.port ? `${port.port}/` : ""}${port.protocol}`).join(" ")}</td></tr>`;
    })}</tbody></table></div>`;
}
