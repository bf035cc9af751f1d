// Line icons, 24 units wide.
import { html } from "/vendor/htm-preact.js";

const PATHS = {
  workload: "M12 3l7.8 4.5v9L12 21l-7.8-4.5v-9zM12 12l7.8-4.5M12 12v9M12 12L4.2 7.5",
  pod: "M12 3l7.8 4.5v9L12 21l-7.8-4.5v-9z",
  namespace: "M4 7V5h6l2 2h8v12H4z",
  identity: "M12 12a4 4 0 100-8 4 4 0 000 8zM5 20c.6-3.6 3.3-5.5 7-5.5s6.4 1.900 7 5.500",
  name: "M12 21a9 9 0 100-18 9 9 0 000 18zM3 12h18M12 3c3 3 3 15 0 18M12 3c-3 3-3 15 0 18",
  world: "M12 21a9 9 0 100-18 9 9 0 000 18zM3 12h18M12 3c3 3 3 15 0 18M12 3c-3 3-3 15 0 18",
  cidr: "M4 6h16v4H4zM4 14h16v4H4zM8 10v4M16 10v4",
  host: "M4 5h16v6H4zM4 13h16v6H4zM7.500 8h.01M7.500 16h.01",
  "remote-node": "M4 5h16v6H4zM4 13h16v6H4zM7.500 8h.01M7.500 16h.01",
  "kube-apiserver": "M12 3v6M12 15v6M3 12h6M15 12h6M12 15a3 3 0 100-6 3 3 0 000 6z",
  health: "M3 12h4l2.500-6 4 12 2.500-6H21",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  close: "M6 6l12 12M18 6L6 18",
  sun: "M12 16a4 4 0 100-8 4 4 0 000 8zM12 2v2M12 20v2M4 12H2M22 12h-2M5 5l1.500 1.500M17.500 17.500L19 19M19 5l-1.500 1.500M6.500 17.500L5 19",
  moon: "M20 14.500A8.500 8.500 0 119.500 4a7 7 0 0010.500 10.500z",
  pause: "M8 5v14M16 5v14",
  play: "M7 5l12 7-12 7z",
  shield: "M12 3l8 3v6c0 4.500-3.300 7.800-8 9-4.700-1.200-8-4.500-8-9V6z",
  arrow: "M5 12h14M13 6l6 6-6 6",
  unknown: "M12 17h.01M9 9a3 3 0 115 2.200c-1.200.900-2 1.500-2 2.800",
};

export function Icon({ name, size = 18, x, y }) {
  return html`<svg class="glyph" x=${x} y=${y} width=${size} height=${size} viewBox="0 0 24 24" fill="none" stroke="currentColor"
    stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true" focusable="false"><path d=${PATHS[name] ?? PATHS.unknown} /></svg>`;
}

export const Mark = () => html`<svg class="brand-mark" viewBox="0 0 32 32" width="28" height="28" aria-hidden="true"><rect width="32" height="32" rx="8" />
  <g fill="none" stroke-width="2.2" stroke-linecap="round"><ellipse cx="16" cy="16" rx="8.2" ry="5.4" transform="rotate(-24 16 16)" />
  <path d="M16 6.200v2.400M16 23.400v2.400M6.600 12.600l2.200 1M23.200 18.400l2.200 1M23.900 9.300l-1.700 1.800M9.800 20.900l-1.700 1.800" /></g></svg>`;
