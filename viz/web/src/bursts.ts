// What the flight recorder sent: a list of the last day's bursts, and of one of them the charts of a
// hundred samples a second with who was busiest then.
//
// The samples are raw counters, each family on its own moments (memory and pressure are read less often
// than the CPU). What lies between two samples of a counter is its rate over all of that time.

import { bursts, raw, type Burst, type Raw } from "./api";
import { h, text } from "./dom";
import { format, instant, percent } from "./format";
import { Card } from "./plot";
import type { ChartSpec } from "./charts";
import type { Grid } from "./terms";
import type { Window } from "./view";

const LIST_MS = 30_000;
const SHOWN_MAX = 50;
/** No more of a burst is asked for; agents send 70 s. */
const LONG_MS_MAX = 300_000;

const REASONS: Record<string, string> = {
  cpu_pressure: "CPU pressure", io_pressure: "I/O pressure", memory_pressure: "Memory pressure",
  anomaly: "Anomaly", out_of_memory: "Out of memory", signal: "Asked for on the host", request: "Asked for",
};
const MODES: Record<string, string> = { system: "System", user: "User", irq: "IRQ", steal: "Stolen", iowait: "I/O wait" };

interface Chart {
  spec: ChartSpec;
  /** Metrics behind `strobe_burst_`, as a regular expression. */
  metrics: string;
  grid(series: readonly Raw[]): Grid;
}

const spec = (id: string, title: string, explain: string, more: Pick<ChartSpec, "unit"> & Partial<ChartSpec>): ChartSpec => ({
  id: `burst-${id}`, title, explain, legendRows: 2, terms: [], finish: () => new Map(), none: "The burst has nothing of the kind.", ...more,
});

const CHARTS: readonly Chart[] = [
  {
    spec: spec("cpu", "CPU by mode", "Share of all cores’ time in each hundredth of a second; the kernel counts in ticks, mostly of 10 ms.", { unit: "percent", stacked: true, atLeast: 1 }),
    metrics: "cpu_seconds_total",
    grid: (series) => {
      const rates = series.map((one) => ({ mode: one.labels["mode"] ?? "", ...perSecond(one) }));
      const all = union(rates);
      const known = rates.map((one) => onto(all, one));
      const total = all.map((_, i) => known.reduce((sum, values) => sum + (values[i] ?? 0), 0));
      const lines: Grid["lines"] = new Map();
      for (const [mode, name] of Object.entries(MODES)) {
        const at = rates.findIndex((one) => one.mode === mode);
        if (at >= 0) lines.set(name, known[at]!.map((value, i) => (value === null || !total[i] ? null : value / total[i])));
      }
      return { times: all, lines };
    },
  },
  {
    spec: spec("tasks", "Running and blocked", "Tasks that run or want to run, and tasks that wait for a disk, at that very moment.", { unit: "number", atLeast: 4 }),
    metrics: "procs_(running|blocked)",
    grid: (series) => lay(series.map((one) => ({ name: one.metric.endsWith("running") ? "Running" : "Blocked", ...one }))),
  },
  {
    spec: spec("disk", "Disk throughput", "Bytes read (above) and written (below) by each disk in each hundredth of a second.", { unit: "bytes/s", mirrored: true }),
    metrics: "disk_(read|written)_bytes_total",
    grid: (series) => ways(series, "disk_read_bytes_total", "reads", "writes"),
  },
  {
    spec: spec("disk-busy", "Disk busy", "Share of time a disk had at least one request open.", { unit: "percent", atLeast: 1 }),
    metrics: "disk_io_seconds_total",
    grid: (series) => lay(series.map((one) => ({ name: one.labels["device"] ?? "", ...capped(one) }))),
  },
  {
    spec: spec("network", "Network throughput", "Bytes received (above) and sent (below) by each interface in each hundredth of a second.", { unit: "bytes/s", mirrored: true }),
    metrics: "network_(receive|transmit)_bytes_total",
    grid: (series) => ways(series, "network_receive_bytes_total", "in", "out"),
  },
  {
    spec: spec("pressure", "Pressure", "Share of time in which at least one task waited for the resource.", { unit: "percent", atLeast: 1 }),
    metrics: "pressure_seconds_total",
    grid: (series) => lay(series.filter((one) => one.labels["share"] === "some").map((one) => {
      const name = { cpu: "CPU", io: "I/O", memory: "Memory" }[one.labels["resource"] ?? ""] ?? "Other";
      return { name, ...capped(one) };
    })),
  },
];

export class Bursts {
  /** The charts of one burst; empty while none is open. */
  readonly open = h("section", { class: "burst", "aria-labelledby": "burst-title", hidden: true });
  readonly list = h("section", { class: "bursts", "aria-labelledby": "bursts-title", hidden: true });
  private readonly cards: Card[];
  private readonly title = h("h2", { id: "burst-title", tabindex: "-1" });
  private readonly when = h("p", { class: "facts" });
  private readonly at = h("span", { class: "instant", "aria-hidden": "true" });
  private readonly users = h("div", { class: "users" });
  private readonly items = h("ul", { class: "burst-list" });
  private instance: string | null = null;
  private wanted: number | null = null;
  private shown: number | null = null;
  private known: Burst[] = [];
  private whole: Window = { from: 0, to: 1 };
  private timer = 0;
  private stopped = false;

  constructor(private readonly link: (at: number | null) => string) {
    const events = {
      zoom: (window: Window) => this.zoom(window),
      reset: () => this.zoom(this.whole),
      cursor: (seconds: number | null) => text(this.at, seconds === null ? "" : `at ${instant(seconds * 1000).slice(11)}`),
    };
    this.cards = CHARTS.map((chart) => new Card(chart.spec, events));
    const all = h("button", { type: "button", class: "whole" }, "Whole burst");
    all.addEventListener("click", () => this.zoom(this.whole));
    this.open.append(
      h("div", { class: "name-line" }, this.title, h("a", { class: "close", href: "#", "data-close": true }, "Close")),
      h("div", { class: "name-line" }, this.when, this.at, all),
      this.users, h("div", { class: "grid" }, ...this.cards.map((card) => card.root)));
    this.list.append(h("h2", { id: "bursts-title" }, "Bursts"),
      h("p", { class: "explain" }, "A hundred samples a second around a moment that stood out, of the last day."), this.items);
    this.timer = window.setInterval(() => void this.refresh(), LIST_MS);
  }

  /** Whose bursts. */
  of(instance: string): void {
    if (this.instance === instance) return;
    this.instance = instance;
    void this.refresh();
  }

  /** Which one is open, by its moment. */
  show(at: number | null): void {
    const opened = at !== null && at !== this.wanted;
    this.wanted = at;
    void this.present();
    if (!opened) return;
    // Once: a list that is read again, or a second try, must not move the page under a reader.
    this.open.scrollIntoView({ block: "start" });
    this.title.focus({ preventScroll: true });
  }

  stop(): void {
    this.stopped = true;
    clearInterval(this.timer);
    for (const card of this.cards) card.destroy();
  }

  retheme(): void {
    for (const card of this.cards) card.retheme();
  }

  private async refresh(): Promise<void> {
    if (this.instance === null || document.hidden) return;
    try {
      this.known = await bursts(this.instance);
    } catch {
      return; // The list stays as it was; the next turn asks again.
    }
    if (this.stopped) return;
    this.list.hidden = this.known.length === 0;
    this.items.replaceChildren(...this.known.slice(0, SHOWN_MAX).map((burst) => this.item(burst)));
    void this.present();
  }

  private item(burst: Burst): HTMLElement {
    const [busiest] = burst.processes;
    return h("li", {}, h("a", { href: this.link(burst.at_ms) },
      h("span", { class: "burst-when" }, instant(burst.at_ms).slice(0, 19)), h("span", { class: "burst-why" }, reason(burst)),
      h("span", { class: "burst-who" }, busiest ? `${busiest.comm} ${percent(busiest.cpus)}` : "")));
  }

  private async present(): Promise<void> {
    this.open.hidden = this.wanted === null;
    if (this.wanted === null || this.instance === null || this.shown === this.wanted) {
      if (this.wanted === null) this.shown = null;
      return;
    }
    const at = this.shown = this.wanted;
    const close = this.open.querySelector<HTMLAnchorElement>("[data-close]")!;
    close.href = this.link(null);
    text(this.title, `Burst at ${instant(at).slice(11)}`);
    text(this.when, "Loading…");
    this.users.replaceChildren();
    for (const card of this.cards) {
      card.grid = null;
      card.say("Loading the burst…");
    }
    try {
      await this.fill(at);
    } catch (error) {
      if (this.stopped || this.shown !== at) return;
      this.shown = null;
      text(this.when, `The burst could not be read: ${(error as Error).message}`);
      for (const card of this.cards) card.say("Not read.", "error");
    }
  }

  private async fill(at: number): Promise<void> {
    const burst = this.known.find((burst) => burst.at_ms === at) ?? (await bursts(this.instance!, at - 1, at + 1)).find((burst) => burst.at_ms === at);
    if (this.stopped || this.shown !== at) return;
    if (!burst) throw new Error("there is none of this moment, or it is gone with the history of its day");
    this.whole = { from: Math.max(burst.from_ms, burst.at_ms - LONG_MS_MAX), to: Math.min(burst.to_ms, burst.at_ms + LONG_MS_MAX) };
    text(this.title, `${reason(burst)} at ${instant(at).slice(11)}`);
    text(this.when, `${instant(this.whole.from).slice(0, 19)} – ${instant(this.whole.to).slice(11, 19)}, up to a hundred samples a second`);
    this.users.replaceChildren(
      table("Busiest processes", burst.processes.map((user) => [`${user.comm} (${user.pid})`, user.cpus])),
      table("Busiest control groups", burst.cgroups.map((user) => [user.cgroup, user.cpus])));
    this.zoom(this.whole);
    for (const [i, chart] of CHARTS.entries()) {
      const series = await raw(`strobe_burst_${chart.metrics}`, this.instance!, this.whole);
      if (this.stopped || this.shown !== at) return;
      const card = this.cards[i]!;
      card.grid = chart.grid(series);
      card.show(this.whole);
    }
  }

  private zoom(window: Window): void {
    for (const card of this.cards) card.show(window);
  }
}

function reason(burst: Burst): string {
  return REASONS[burst.reason] ?? burst.reason;
}

function table(title: string, users: [name: string, cpus: number][]): HTMLElement {
  const rows = users.map(([name, cpus]) => h("tr", {}, h("th", { scope: "row", title: name }, name), h("td", {}, `${format(cpus, "number")} CPUs`)));
  return h("table", {}, h("caption", {}, title), h("tbody", {}, ...(rows.length > 0 ? rows : [h("tr", {}, h("th", { scope: "row" }, "None was seen"))])));
}

interface Line {
  times: number[];
  values: number[];
}

/** What a counter did between its samples, per second, at the later one; a fall says nothing. */
export function perSecond({ times, values }: Line): Line {
  const found: Line = { times: [], values: [] };
  for (let i = 1; i < times.length; i += 1) {
    const [passed, more] = [times[i]! - times[i - 1]!, values[i]! - values[i - 1]!];
    if (passed <= 0 || more < 0) continue;
    found.times.push(times[i]!);
    found.values.push(more / passed);
  }
  return found;
}

/** Seconds a second: no more than all of them. */
function capped(line: Line): Line {
  const { times, values } = perSecond(line);
  return { times, values: values.map((value) => Math.min(1, value)) };
}

function union(lines: readonly Line[]): number[] {
  return [...new Set(lines.flatMap((line) => line.times))].sort((a, b) => a - b);
}

/** A line on other moments: what is told at a moment holds since the one before it. */
export function onto(times: readonly number[], line: Line): (number | null)[] {
  let next = 0;
  return times.map((time) => {
    while (next < line.times.length && line.times[next]! < time) next += 1;
    return line.values[next] ?? null;
  });
}

function lay(lines: readonly (Line & { name: string })[]): Grid {
  const times = union(lines);
  return { times, lines: new Map(lines.map((line) => [line.name, onto(times, line)])) };
}

/** In above zero, out below. */
function ways(series: readonly Raw[], into: string, inWord: string, outWord: string): Grid {
  const lines = series.map((one) => {
    const { times, values } = perSecond(one);
    const device = one.labels["device"] ?? "";
    const goesIn = one.metric.endsWith(into);
    return { device, goesIn, name: `${device} ${goesIn ? inWord : outWord}`, times, values: goesIn ? values : values.map((value) => -value) };
  });
  // Pairs stand beside each other, in first.
  return lay(lines.sort((a, b) => a.device.localeCompare(b.device, "en", { numeric: true }) || Number(b.goesIn) - Number(a.goesIn)));
}
