// What is looked at, and its URL. The whole view stands in the hash, so that a link is the view.
//
//   #/?q=web                       the fleet, filtered
//   #/host/<id>?range=5m           a host, live
//   #/host/<id>?from=…&to=…&range=5m   a host, held still; `range` is what "live" goes back to
//   #/cluster                     the brokers
//   …&burst=<ms>                   with the burst of that moment open

export type View = Fleet | Host | Cluster;

export interface Cluster {
  page: "cluster";
}

export interface Fleet {
  page: "fleet";
  filter: string;
}

export interface Host {
  page: "host";
  id: string;
  range: Range;
  /** Held still at a window (ms); null follows the clock. */
  held: Window | null;
  /** The moment (ms) of the burst that is open. */
  burst: number | null;
}

export interface Window {
  from: number;
  to: number;
}

export type Range = string;

export const RANGES: readonly Range[] = ["1m", "5m", "15m", "1h", "6h", "24h", "7d"];
export const RANGE_DEFAULT: Range = "5m";

const WINDOW_MS_MIN = 5_000;
const WINDOW_MS_MAX = 400 * 86_400_000;
const UNITS: Record<string, number> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds of a range such as `15m`; null if it is not one. */
export function rangeMs(range: string): number | null {
  const match = /^(\d{1,5})([smhd])$/.exec(range);
  if (!match) return null;
  const ms = Number(match[1]) * UNITS[match[2]!]!;
  return ms >= WINDOW_MS_MIN && ms <= WINDOW_MS_MAX ? ms : null;
}

/** A window put in order and kept within bounds. */
export function windowOf(a: number, b: number): Window {
  const from = Math.round(Math.min(a, b));
  const to = Math.round(Math.max(a, b));
  const lacking = Math.max(0, WINDOW_MS_MIN - (to - from));
  const start = Math.max(from - Math.ceil(lacking / 2), to - WINDOW_MS_MAX);
  return { from: start, to: Math.max(to, start + WINDOW_MS_MIN) };
}

export function parse(hash: string): View {
  const text = hash.replace(/^#/, "");
  const cut = text.indexOf("?");
  const path = cut < 0 ? text : text.slice(0, cut);
  const query = new URLSearchParams(cut < 0 ? "" : text.slice(cut + 1));
  if (path === "/cluster") return { page: "cluster" };
  const host = /^\/host\/([^/]+)$/.exec(path);
  if (!host) return { page: "fleet", filter: (query.get("q") ?? "").slice(0, 200) };
  const asked = query.get("range") ?? "";
  const range = rangeMs(asked) === null ? RANGE_DEFAULT : asked;
  return { page: "host", id: decode(host[1]!), range, held: held(query), burst: burst(query) };
}

export function print(view: View): string {
  const query = new URLSearchParams();
  if (view.page === "cluster") return "#/cluster";
  if (view.page === "fleet") {
    if (view.filter) query.set("q", view.filter);
    return query.size ? `#/?${query}` : "#/";
  }
  if (view.held) {
    query.set("from", String(view.held.from));
    query.set("to", String(view.held.to));
  }
  query.set("range", view.range);
  if (view.burst !== null) query.set("burst", String(view.burst));
  return `#/host/${encodeURIComponent(view.id)}?${query}`;
}

function held(query: URLSearchParams): Window | null {
  const [from, to] = [query.get("from") ?? "", query.get("to") ?? ""];
  if (!/^\d{1,15}$/.test(from) || !/^\d{1,15}$/.test(to) || Number(from) >= Number(to)) return null;
  return windowOf(Number(from), Number(to));
}

function burst(query: URLSearchParams): number | null {
  const at = query.get("burst") ?? "";
  return /^\d{1,15}$/.test(at) ? Number(at) : null;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
