// Who uses the host: the busiest processes and control groups of the window, by CPU, with memory and disks.
//
// The agent names a few dozen of them and puts all others into one: shares of the named and of the others
// add up to all that the host used. Whoever was named in a part of the window only counts with that part.

import { range, type Raw } from "./api";
import { h, text } from "./dom";
import { format, percent } from "./format";
import { Spark } from "./spark";
import type { Window } from "./view";

const SHOWN = 10;
const POINTS = 44;
const AGAIN_MS = 10_000;
/** Rates need two samples, and the agent may tell its set only every 15 s. */
const RATE_S = 60;

export interface User {
  name: string;
  /** The group above it, said where there is room. */
  parent: string;
  detail: string;
  /** Of one core: the mean over the window, and the line. */
  cpu: number | null;
  line: (number | null)[];
  memory: number | null;
  disk: number | null;
  others: boolean;
}

interface Kind {
  id: string;
  title: string;
  explain: string;
  none: string;
  column: string;
}

const KINDS: readonly Kind[] = [
  {
    id: "process", title: "Busiest processes", column: "Process",
    explain: "CPU as a share of one core over the window, memory it holds, and bytes to and from disks.",
    none: "This host’s agent names no processes. It does with --collector.process.",
  },
  {
    id: "cgroup", title: "Busiest control groups", column: "Control group",
    explain: "The same by service, container or session: every group without groups below it.",
    none: "This host’s agent names no control groups. It does with --collector.cgroup, where the kernel has them.",
  },
];

const series = (metric: string, instance: string) => `{__name__=~${JSON.stringify(metric)},instance=${JSON.stringify(instance)}}`;

export class Busy {
  readonly root: HTMLElement;
  private readonly tables = KINDS.map((kind) => new Table(kind));
  private instance: string | null = null;
  private window: Window = { from: 0, to: 1 };
  private readonly timer: number;
  private asked = 0;
  private following = false;
  private stopped = false;

  constructor() {
    this.root = h("section", { class: "busy", "aria-labelledby": "group-busy" }, h("h2", { id: "group-busy" }, "Busiest"),
      h("div", { class: "grid" }, ...this.tables.map((table) => table.root)));
    this.timer = window.setInterval(() => this.following && !document.hidden && void this.refresh(), AGAIN_MS);
  }

  of(instance: string): void {
    if (this.instance === instance) return;
    this.instance = instance;
    void this.refresh();
  }

  /** The window moves with the clock or is held still. */
  show(window: Window, following: boolean): void {
    const moved = this.following !== following || !following || window.to - window.from !== this.window.to - this.window.from;
    this.window = window;
    this.following = following;
    if (moved) void this.refresh();
  }

  stop(): void {
    this.stopped = true;
    clearInterval(this.timer);
  }

  private async refresh(): Promise<void> {
    if (this.instance === null) return;
    const turn = (this.asked += 1);
    const long = this.window.to - this.window.from;
    const to = this.following ? Date.now() : this.window.to;
    const step = Math.max(1, Math.ceil(long / 1000 / POINTS));
    const ask = (query: string) => range(query, { from: to - long, to }, step);
    const of = (metric: string) => series(metric, this.instance!);
    const rate = (metric: string) => `rate(${of(metric)}[${Math.max(RATE_S, 2 * step)}s])`;
    try {
      const [cpu, memory, read, written] = await Promise.all([
        ask(rate("strobe_(process|cgroup)_cpu_seconds_total")),
        ask(of("strobe_process_resident_bytes|strobe_cgroup_memory_bytes")),
        ask(rate("strobe_process_read_bytes_total|strobe_cgroup_io_read_bytes_total")),
        ask(rate("strobe_process_written_bytes_total|strobe_cgroup_io_written_bytes_total")),
      ]);
      if (this.stopped || turn !== this.asked) return;
      const count = Math.floor(long / 1000 / step) + 1;
      const times = Array.from({ length: count }, (_, i) => (to - long) / 1000 + i * step);
      for (const table of this.tables) table.show(users(table.kind.id, times, { cpu, memory, disk: [...read, ...written] }));
    } catch (error) {
      if (this.stopped || turn !== this.asked) return;
      for (const table of this.tables) table.say(`Not read: ${(error as Error).message}`);
    }
  }
}

class Table {
  readonly root: HTMLElement;
  private readonly body = h("tbody");
  private readonly table: HTMLElement;
  private readonly note = h("p", { class: "note", role: "status" }, "Loading…");

  constructor(readonly kind: Kind) {
    const id = `busy-${kind.id}`;
    const head = h("tr", {}, h("th", { scope: "col" }, kind.column), h("th", { scope: "col", class: "line" }, h("span", { class: "sr" }, "CPU over time")),
      h("th", { scope: "col" }, "CPU"), h("th", { scope: "col" }, "Memory"), h("th", { scope: "col", class: "disk" }, "Disk"));
    this.table = h("table", { "aria-labelledby": id, hidden: true }, h("thead", {}, head), this.body);
    this.root = h("article", { class: "panel" }, h("h3", { id }, kind.title), h("p", { class: "explain" }, kind.explain), this.table, this.note);
  }

  show(found: readonly User[]): void {
    if (found.length === 0) return this.say(this.kind.none);
    this.table.hidden = false;
    this.note.hidden = true;
    const top = Math.max(0.01, ...found.flatMap((user) => user.line.map((value) => value ?? 0)));
    this.body.replaceChildren(...found.map((user) => row(user, top)));
  }

  say(words: string): void {
    text(this.note, words);
    this.table.hidden = true;
    this.note.hidden = false;
  }
}

function row(user: User, top: number): HTMLElement {
  const spark = new Spark(top, Math.max(2, user.line.length));
  spark.set(user.line);
  return h("tr", { "data-others": user.others },
    h("th", { scope: "row", title: user.detail }, h("span", { class: "who" }, user.parent ? h("span", { class: "parent" }, `${user.parent}/`) : null, user.name)),
    h("td", { class: "line" }, spark.root),
    h("td", {}, percent(user.cpu)), h("td", {}, format(user.memory, "bytes")), h("td", { class: "disk" }, format(user.disk, "bytes/s")));
}

/** The first by CPU, then by memory, and all others as one behind them. */
export function users(kind: string, times: readonly number[], found: { cpu: readonly Raw[]; memory: readonly Raw[]; disk: readonly Raw[] }): User[] {
  const label = kind === "cgroup" ? "cgroup" : "comm";
  const known = new Map<string, User>();
  const user = (one: Raw): User | null => {
    const name = one.labels[label];
    if (name === undefined) return null;
    const pid = one.labels["pid"];
    const key = `${name}\u0000${pid ?? ""}`;
    let user = known.get(key);
    if (!user) {
      const others = name === "other" && (kind === "cgroup" || pid === undefined);
      const path = pid === undefined ? name.split("/").filter(Boolean) : [];
      const named = pid === undefined ? path.at(-1) ?? name : `${name} (${pid})`;
      user = { name: others ? "All others" : named, parent: path.at(-2) ?? "", detail: others ? "" : pid === undefined ? name : `${name}, process ${pid}`, cpu: null, line: times.map(() => null), memory: null, disk: null, others };
      known.set(key, user);
    }
    return user;
  };
  for (const one of found.cpu) {
    const who = user(one);
    if (!who) continue;
    who.line = onto(times, one);
  }
  // Of the time that anything is known of: a host that came a moment ago was not idle before.
  const covered = times.filter((_, i) => [...known.values()].some((user) => user.line[i] !== null)).length;
  for (const who of known.values()) {
    const ticks = who.line.filter((value): value is number => value !== null);
    if (ticks.length > 0) who.cpu = ticks.reduce((sum, value) => sum + value, 0) / covered;
  }
  for (const one of found.memory) {
    const who = user(one);
    if (who) who.memory = one.values.at(-1) ?? null;
  }
  for (const one of found.disk) {
    const who = user(one);
    if (who) who.disk = (who.disk ?? 0) + (one.values.at(-1) ?? 0);
  }
  const all = [...known.values()];
  const named = all.filter((user) => !user.others);
  named.sort((a, b) => (b.cpu ?? 0) - (a.cpu ?? 0) || (b.memory ?? 0) - (a.memory ?? 0) || a.name.localeCompare(b.name, "en"));
  const others = all.filter((user) => user.others);
  return named.length === 0 && others.every((user) => user.cpu === null) ? [] : [...named.slice(0, SHOWN), ...others];
}

/** Values at the moments that were asked for; none where there was none. */
function onto(times: readonly number[], { times: at, values }: Raw): (number | null)[] {
  const known = new Map(at.map((time, i) => [Math.round(time * 1000), values[i]!]));
  return times.map((time) => known.get(Math.round(time * 1000)) ?? null);
}
