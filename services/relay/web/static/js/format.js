// Numbers, times and names as people read them.
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const plain = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
const short = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" });

export const count = (value) => (value < 10_000 ? plain.format(value) : compact.format(value));
export const time = (seconds) => clock.format(seconds * 1000);
export const moment = (seconds, span) => (span > 86_400 ? day : short).format(seconds * 1000);
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

export function rate(perSecond) {
  if (perSecond >= 10) return `${count(Math.round(perSecond))}/s`;
  if (perSecond >= 0.1) return `${perSecond.toFixed(1)}/s`;
  return perSecond > 0 ? `${Math.max(0.1, perSecond * 60).toFixed(1)}/min` : "0/s";
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1000)} µs`;
  if (value < 1000) return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  return `${(value / 1000).toFixed(1)} s`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (value >= 1000 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${place && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[place]}`;
}

export const verdictWord = { passed: "passed", refused: "refused", mixed: "partly refused", audited: "audited" };

// Of a flow's verdict in the API.
export const verdictClass = (verdict) => ({ DROPPED: "refused", ERROR: "refused", AUDIT: "audited" })[verdict] ?? "passed";

export function side(end, port) {
  const name = end.pod || end.names[0] || end.workload || reserved(end.labels) || end.address;
  return { name, namespace: end.namespace, port, title: `${end.address}${port ? `:${port}` : ""}` };
}

const reserved = (labels) => {
  const found = labels.find((label) => label.startsWith("reserved:"));
  return found ? found.slice("reserved:".length) : "";
};

export function policyName(policy) {
  return `${policy.kind} ${policy.namespace ? `${policy.namespace}/` : ""}${policy.name}`;
}
