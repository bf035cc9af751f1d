// What is known about the selection, and why something was refused.
import { html, useEffect, useRef } from "/vendor/htm-preact.js";
import { bytes, count, milliseconds, plural, policyName, rate, side, time, verdictClass, verdictWord } from "/js/format.js";
import { Icon } from "/js/icons.js";
import { subtitle } from "/js/map.js";

export const nameOf = (id, nodes) => nodes.get(id)?.name ?? id.split(/[:/]/).pop();

const Figure = ({ name, children }) => html`<div><dt>${name}</dt><dd>${children}</dd></div>`;
const Pill = ({ verdict, children }) => html`<span class="pill ${verdict}">${children}</span>`;

function Policy({ policy }) {
  return html`<span class="policy"><${Icon} name="shield" size="14" /><span>${policyName(policy)}${policy.rule && html` <code>${policy.rule}</code>`}</span></span>`;
}

export function Explanation({ reason, verdict }) {
  return html`<article class="explanation ${verdict}">
    <h4>${reason.title}${reason.count ? html` <span class="times">${count(reason.count)}×</span>` : null}</h4>
    <p>${reason.text}</p>
    ${reason.policies?.map((policy) => html`<${Policy} policy=${policy} />`)}
    ${reason.nearest && html`<div class="nearest"><h5>Nearest rule</h5><${Policy} policy=${reason.nearest} />
      <p>It does not apply: ${reason.nearest.text}.</p></div>`}
    ${reason.reason && html`<p class="code">Drop reason <code>${reason.reason}</code></p>`}
  </article>`;
}

function EdgeDetails({ edge, nodes, onSelect }) {
  const http = edge.http;
  return html`<div class="route">
      <button class="link" onClick=${() => onSelect({ type: "node", id: edge.source })}>${nameOf(edge.source, nodes)}</button>
      <${Icon} name="arrow" size="16" />
      <button class="link" onClick=${() => onSelect({ type: "node", id: edge.destination })}>${nameOf(edge.destination, nodes)}</button>
    </div>
    <p><${Pill} verdict=${edge.verdict}>${verdictWord[edge.verdict]}<//> <span class="muted">last seen ${time(edge.last)}</span></p>
    ${edge.reasons.length > 0 && html`<section aria-label="Why"><h3>${edge.refused ? "Why it was refused" : "What would be refused"}</h3>
      ${edge.reasons.map((reason) => html`<${Explanation} reason=${reason} verdict=${edge.refused ? "refused" : "audited"} />`)}</section>`}
    ${(edge.connections > 0 || edge.dns > 0) && html`<section aria-label="Traffic"><h3>Traffic</h3>
      <dl class="figures">
        <${Figure} name="Rate">${rate(edge.rate)}<//><${Figure} name="Connections">${count(edge.connections)}<//>
        ${edge.refused > 0 && html`<${Figure} name="Refused">${count(edge.refused)}<//>`}<${Figure} name="Data">${bytes(edge.bytes)}<//>
        <${Figure} name="RTT p50">${milliseconds(edge.rtt_ms?.p50)}<//><${Figure} name="RTT p99">${milliseconds(edge.rtt_ms?.p99)}<//>
        ${edge.dns > 0 && html`<${Figure} name="DNS questions">${count(edge.dns)}<//>`}
      </dl></section>`}
    ${http && html`<section aria-label="HTTP"><h3>HTTP</h3><dl class="figures">
        <${Figure} name="Requests">${count(http.requests)}<//><${Figure} name="Refused">${count(http.refused)}<//>
        <${Figure} name="Server errors">${count(http.errors)}<//><${Figure} name="Latency p50">${milliseconds(http.latency_ms?.p50)}<//>
        <${Figure} name="Latency p99">${milliseconds(http.latency_ms?.p99)}<//></dl></section>`}
    ${edge.ports.length > 0 && html`<section aria-label="Ports"><h3>Ports</h3><ul class="ports">${edge.ports.map(
      (port) => html`<li><code>${port.port ? `${port.port}/` : ""}${port.protocol}</code>
        <span>${port.passed > 0 && plural(port.passed, "connection")}${port.passed > 0 && port.refused > 0 && ", "}${port.refused > 0 && html`<b class="bad">${count(port.refused)} refused</b>`}</span></li>`,
    )}</ul></section>`}`;
}

function Neighbours({ title, edges, end, nodes, onSelect }) {
  if (!edges.length) return null;
  return html`<section aria-label=${title}><h3>${title}</h3><ul class="neighbours">${edges.map(
    (edge) => html`<li><button class="row" onClick=${() => onSelect({ type: "edge", id: edge.id, source: edge.source, destination: edge.destination })}>
      <span class="dot ${edge.verdict}" aria-hidden="true"></span><span class="grow">${nameOf(edge[end], nodes)}</span>
      <span class="muted">${edge.verdict === "passed" ? rate(edge.rate) : `${verdictWord[edge.verdict]} · ${count(edge.refused || edge.audited)}`}</span></button></li>`,
  )}</ul></section>`;
}

function NodeDetails({ node, graph, nodes, onSelect, onFilter }) {
  const out = graph.edges.filter((edge) => edge.source === node.id);
  const into = graph.edges.filter((edge) => edge.destination === node.id);
  const filter = node.kind === "workload" ? { name: "workload", value: `${node.detail}/${node.name}` }
    : node.kind === "pod" ? { name: "pod", value: `${node.namespace}/${node.name}` }
    : node.kind === "namespace" ? { name: "namespace", value: node.name }
    : node.kind === "name" ? { name: "fqdn", value: node.name }
    : node.kind === "reserved" ? { name: "identity", value: node.name } : null;
  return html`<p><span class="muted">${subtitle(node)}${node.namespace && node.kind !== "namespace" ? ` in ${node.namespace}` : ""}</span></p>
    ${node.refused > 0 && html`<p><${Pill} verdict="refused">${count(node.refused)} refused<//></p>`}
    ${filter && html`<p class="actions"><button onClick=${() => onFilter({ ...filter, not: false })}>Only this</button>
      <button onClick=${() => onFilter({ ...filter, not: true })}>Without this</button></p>`}
    <${Neighbours} title="Talks to" edges=${out} end="destination" nodes=${nodes} onSelect=${onSelect} />
    <${Neighbours} title="Is called by" edges=${into} end="source" nodes=${nodes} onSelect=${onSelect} />`;
}

function FlowDetails({ flow, onFilter }) {
  const trace = flow.trace && html`${flow.trace} <button onClick=${() => onFilter({ name: "trace-id", value: flow.trace, not: false })}>Only this</button>`;
  const rows = [
    ["Time", time(flow.time)], ["Id", flow.id], ["Node", flow.node], ["Direction", flow.direction.replace("traffic_direction_", "")],
    ["From", `${side(flow.source).name} (${flow.source.address}${flow.source_port ? `:${flow.source_port}` : ""})`],
    ["To", `${side(flow.destination).name} (${flow.destination.address}${flow.destination_port ? `:${flow.destination_port}` : ""})`],
    ["Protocol", flow.protocol], ["Service", flow.service],
    ["Request", flow.http ? `${flow.http.method} ${flow.http.url}` : ""], ["Status", flow.http?.code ?? ""],
    ["Latency", flow.http?.latency_ms ? milliseconds(flow.http.latency_ms) : ""], ["Trace", trace],
    ["Name", flow.dns?.query ?? ""], ["Addresses", flow.dns?.addresses.join(", ") ?? ""],
    ["Data", flow.traffic ? `${bytes(flow.traffic.bytes)} sent, ${bytes(flow.traffic.reply_bytes)} back` : ""],
    ["Packets", flow.traffic ? `${count(flow.traffic.packets)} sent, ${count(flow.traffic.reply_packets)} back` : ""],
    ["RTT", flow.traffic?.rtt_ms ? milliseconds(flow.traffic.rtt_ms) : ""],
    ["Duration", flow.traffic ? milliseconds(flow.traffic.duration_ms) : ""],
    ["Source labels", flow.source.labels.join(" ")], ["Destination labels", flow.destination.labels.join(" ")],
  ].filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return html`<p><${Pill} verdict=${verdictClass(flow.verdict)}>${flow.verdict.toLowerCase()}<//></p>
    ${flow.explanation && html`<section aria-label="Why"><h3>Why</h3><${Explanation} reason=${flow.explanation} verdict=${verdictClass(flow.verdict)} /></section>`}
    <section aria-label="Record"><h3>Record</h3><dl class="record">${rows.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
    <p class="muted">${flow.summary}</p></section>`;
}

export function Details({ graph, selected, onSelect, onFilter }) {
  const nodes = new Map((graph?.nodes ?? []).map((node) => [node.id, node]));
  const heading = useRef(null);
  useEffect(() => heading.current?.focus({ preventScroll: true }), [selected?.type, selected?.id]);
  const edge = selected.type === "edge" && graph?.edges.find((each) => each.id === selected.id);
  const node = selected.type === "node" && nodes.get(selected.id);
  const title = { edge: "Connection", node: node ? node.name : "Node", flow: "Flow" }[selected.type];
  return html`<aside class="details" aria-labelledby="details-title" onKeyDown=${(event) => event.key === "Escape" && onSelect(null)}>
    <header><h2 id="details-title" ref=${heading} tabindex="-1">${title}</h2>
      <button class="icon" onClick=${() => onSelect(null)} aria-label="Close details" title="Close (Esc)"><${Icon} name="close" size="16" /></button></header>
    ${edge && html`<${EdgeDetails} edge=${edge} nodes=${nodes} onSelect=${onSelect} />`}
    ${node && html`<${NodeDetails} node=${node} graph=${graph} nodes=${nodes} onSelect=${onSelect} onFilter=${onFilter} />`}
    ${selected.type === "flow" && html`<${FlowDetails} flow=${selected.flow} onFilter=${onFilter} />`}
    ${!edge && !node && selected.type !== "flow" && html`<p class="muted">Nothing of it in this time range and with these filters.</p>`}
  </aside>`;
}
