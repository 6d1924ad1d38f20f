// Which host a person should look at first: lost, then late, then the one closest to a limit.

export interface HostState {
  id: string;
  instance: string;
  state: "fresh" | "late" | "lost";
  version?: string | null;
  kernel?: string | null;
  last_seen_ms?: number | null;
  cpu?: number | null;
  load1?: number | null;
  cores?: number | null;
  mem?: number | null;
  swap?: number | null;
  disk_busy?: number | null;
  fs?: number | null;
  rx?: number | null;
  tx?: number | null;
  pressure?: { cpu?: number | null; memory?: number | null; io?: number | null } | null;
}

const STATES: Record<string, number> = { lost: 0, late: 1, fresh: 2 };
const WARN = 0.75;
const ALARM = 0.9;
/** Saturation is compared in steps of this, so that noise does not shuffle the table. */
const LEVEL = 0.05;

export type Severity = "alarm" | "warn" | "calm";

export function severity(share: number | null | undefined): Severity {
  if (share === null || share === undefined) return "calm";
  return share >= ALARM ? "alarm" : share >= WARN ? "warn" : "calm";
}

/** Stalled time hurts long before all of it is stalled. */
export function pressureSeverity(share: number | null | undefined): Severity {
  return severity(share === null || share === undefined ? null : Math.min(1, share * 2.5));
}

/** What is nearest to its limit, and how near. */
export function saturation(host: HostState): { what: string; share: number } {
  const pressure = host.pressure ?? {};
  const all: [string, number | null | undefined][] = [
    ["CPU", host.cpu],
    ["memory", host.mem],
    ["disk busy", host.disk_busy],
    ["file system", host.fs],
    ["CPU pressure", scale(pressure.cpu)],
    ["memory pressure", scale(pressure.memory)],
    ["I/O pressure", scale(pressure.io)],
  ];
  let worst = { what: "", share: 0 };
  for (const [what, share] of all) if ((share ?? 0) > worst.share) worst = { what, share: share ?? 0 };
  return worst;
}

/** Negative if `a` needs attention before `b`. Total, so equal hosts keep one order. */
export function compare(a: HostState, b: HostState): number {
  const state = (STATES[a.state] ?? 0) - (STATES[b.state] ?? 0);
  if (state !== 0) return state;
  const level = (host: HostState) => Math.floor(saturation(host).share / LEVEL);
  return level(b) - level(a) || a.instance.localeCompare(b.instance, "en", { numeric: true }) || (a.id < b.id ? -1 : 1);
}

/** Every word of the filter has to stand somewhere in what the row says. */
export function matches(host: HostState, filter: string): boolean {
  const text = `${host.instance} ${host.id} ${host.state} ${host.kernel ?? ""} ${host.version ?? ""}`.toLowerCase();
  return filter.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

function scale(share: number | null | undefined): number | null {
  return share === null || share === undefined ? null : Math.min(1, share * 2.5);
}
