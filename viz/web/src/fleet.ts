// The fleet: one row a host, what needs attention first. Rows change in place once a second; their order
// changes only every few seconds and never under the pointer or the keyboard.

import { h, text } from "./dom";
import { ago, format, percent, whole } from "./format";
import { cluster, silent } from "./api";
import { compare, matches, pressureSeverity, saturation, severity, type HostState } from "./attention";
import { Machines } from "./machines";
import { Bar, Spark } from "./spark";
import type { Asked, History, Live, Message } from "./live";

const SPARK_POINTS = 60;
const SPARK_STEP_MS = 5000;
const PAGE_ROWS = 200;
const ORDER_MS = 5000;
const SILENT_MS = 5000;

const BUSY: Asked = { metric: "node_cpu_seconds_total", how: "rate", agg: "sum", by: "instance", where: { label: "mode", not: true, pattern: "idle|iowait" } };
const CORES: Asked = { ...BUSY, agg: "count", where: { label: "mode", not: false, pattern: "idle" } };
const flow = (way: string): Asked => ({ metric: `node_network_${way}_bytes_total`, how: "rate", agg: "sum", by: "instance", where: { label: "device", not: true, pattern: "lo" } });
/** The last five minutes of CPU and network, so that the small lines do not start empty. */
const HISTORY = { range_ms: (SPARK_POINTS - 1) * SPARK_STEP_MS, pixels: SPARK_POINTS / 2, terms: [BUSY, CORES, flow("receive"), flow("transmit")] };

const NO_HOST = `No host has reported yet. Make a token where the broker runs (strobe token create), then start an agent on each host: strobe-agent --broker ${location.hostname}:7801 --token TOKEN. It appears here within seconds.`;

const COLUMNS = ["Host", "State", "CPU", "Memory", "Disk", "Network", "Pressure"];
const STATE_NAMES: Record<string, string> = { fresh: "Fresh", late: "Late", lost: "Lost" };

export class FleetPage {
  readonly root: HTMLElement;
  private readonly hosts = new Map<string, HostState>();
  private readonly rows = new Map<string, Row>();
  private readonly body = h("tbody", { role: "rowgroup" });
  private readonly figures = h("dl", { class: "figures" });
  private readonly note = h("p", { class: "note page-note" }, "Waiting for the first hosts…");
  private readonly trouble = h("p", { class: "note page-note", role: "alert", hidden: true });
  private readonly silent = h("ul", { class: "findings", hidden: true });
  private readonly table: HTMLElement;
  private readonly filterBox: HTMLInputElement;
  private readonly more = h("button", { type: "button", class: "more-rows", hidden: true });
  private limit = PAGE_ROWS;
  private ordered = 0;
  private sparkAt = 0;
  private nowMs = 0;
  private retired: ReadonlySet<string> = new Set();
  private readonly left = new AbortController();

  constructor(live: Live, private filter: string, private readonly filtered: (filter: string) => void) {
    this.filterBox = h("input", { type: "search", id: "filter", placeholder: "Filter hosts", autocomplete: "off", spellcheck: "false", value: filter });
    this.filterBox.addEventListener("input", () => {
      this.filter = this.filterBox.value.trim();
      this.filtered(this.filter);
      this.order(true);
    });
    this.table = h("table", { class: "fleet", role: "table", hidden: true },
      h("caption", { class: "sr" }, "Hosts, those that need attention first"),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...COLUMNS.map((name) => h("th", { scope: "col", role: "columnheader" }, name)))), this.body);
    this.more.addEventListener("click", () => {
      this.limit += PAGE_ROWS;
      this.order(true);
    });
    this.root = h("div", { class: "page" },
      h("div", { class: "page-head" },
        h("h1", { tabindex: "-1" }, "Fleet"),
        h("search", { class: "filter" }, h("label", { for: "filter", class: "sr" }, "Filter hosts by name, state, kernel or version"), this.filterBox)),
      this.trouble, h("div", { role: "status" }, this.silent), this.figures, this.note, this.table, this.more,
      new Machines((retired) => {
        this.retired = retired;
        this.order(true);
        this.count();
      }, this.left.signal).root);
    this.body.addEventListener("click", (event) => this.click(event));
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.count();
    void this.askForSilent();
    live.watch({ fleet: true, history: HISTORY }, (message) => this.message(message));
  }

  /** The page is left: nothing more is asked for it. */
  stop(): void {
    this.left.abort();
  }

  focusFilter(): void {
    this.filterBox.focus();
  }

  /** Which brokers do not answer: without theirs the list of hosts may lack some. */
  private async askForSilent(): Promise<void> {
    try {
      const said = document.hidden ? null : silent(await cluster(this.left.signal));
      if (said && said.join() !== this.silent.dataset["said"]) {
        this.silent.dataset["said"] = said.join();
        this.silent.hidden = said.length === 0;
        this.silent.replaceChildren(...said.map((line) => h("li", {}, h("span", {}, line))));
      }
    } catch {
      // Whoever does not answer this does not send hosts either, which the page says by itself.
    }
    if (!this.left.signal.aborted) setTimeout(() => { void this.askForSilent(); }, SILENT_MS);
  }

  private message(message: Message): void {
    // Without history the small lines grow from live values; the numbers beside them are complete.
    if (message.type === "snapshot" && message.answer.data) this.history(message.answer.data);
    if (message.type !== "fleet" && message.type !== "fleet_delta") return;
    this.nowMs = message.now_ms;
    text(this.trouble, message.trouble ? `No news: ${message.trouble}.` : "");
    this.trouble.hidden = !message.trouble;
    if (message.type === "fleet") {
      const there = new Set(message.hosts.map((host) => host.id));
      for (const id of this.hosts.keys()) if (!there.has(id)) this.forget(id);
    }
    for (const host of message.hosts) this.hosts.set(host.id, { ...this.hosts.get(host.id), ...host });
    this.order(message.type === "fleet");
    const spark = this.nowMs - this.sparkAt >= SPARK_STEP_MS;
    if (spark) this.sparkAt = this.nowMs;
    for (const [id, row] of this.rows) row.update(this.hosts.get(id)!, this.nowMs, spark);
    this.count();
  }

  private forget(id: string): void {
    this.hosts.delete(id);
    this.rows.get(id)?.root.remove();
    this.rows.delete(id);
  }

  private history({ count, terms: [busy, cores, into, out] }: History): void {
    for (const [id, row] of this.rows) {
      const name = this.hosts.get(id)?.instance ?? "";
      const line = (lines: History["terms"][number] | undefined, make: (value: number, i: number) => number) =>
        Array.from({ length: SPARK_POINTS }, (_, i) => lines?.[name]?.[i + count - SPARK_POINTS] ?? null).map((value, i) => (value === null ? null : make(value, i + count - SPARK_POINTS)));
      row.cpu.set(line(busy, (value, i) => value / (cores?.[name]?.[i] || 1)));
      row.net.set(line(into, (value, i) => value + (out?.[name]?.[i] ?? 0)));
    }
  }

  private order(now: boolean): void {
    const held = this.body.matches(":hover") || this.body.contains(document.activeElement);
    const due = now || (!held && Date.now() - this.ordered >= ORDER_MS) || (this.rows.size === 0 && this.hosts.size > 0);
    if (!due) return;
    this.ordered = Date.now();
    const wanted = this.used().filter((host) => matches(host, this.filter)).sort(compare);
    const shown = wanted.slice(0, this.limit);
    const keep = new Set(shown.map((host) => host.id));
    for (const [id, row] of this.rows) {
      if (keep.has(id)) continue;
      row.root.remove();
      this.rows.delete(id);
    }
    let before: Element | null = this.body.firstElementChild;
    for (const host of shown) {
      let row = this.rows.get(host.id);
      if (!row) {
        row = new Row(host);
        row.update(host, this.nowMs, true);
        this.rows.set(host.id, row);
      }
      if (row.root === before) before = before.nextElementSibling;
      else this.body.insertBefore(row.root, before);
    }
    this.more.hidden = wanted.length <= shown.length;
    text(this.more, `Show ${Math.min(PAGE_ROWS, wanted.length - shown.length)} more of ${wanted.length} hosts`);
    this.table.hidden = shown.length === 0;
    this.note.hidden = shown.length > 0 || !this.trouble.hidden;
    text(this.note, this.hosts.size === 0 ? NO_HOST : `No host matches “${this.filter}”.`);
  }

  /** Hosts that are not out of use. */
  private used(): HostState[] {
    return [...this.hosts.values()].filter((host) => !this.retired.has(host.id));
  }

  private count(): void {
    const all = this.used();
    const of = (state: string) => all.filter((host) => host.state === state).length;
    const fresh = all.filter((host) => host.state === "fresh");
    const mean = (pick: (host: HostState) => number | null | undefined) => {
      const known = fresh.map(pick).filter((value): value is number => value !== null && value !== undefined);
      return known.length === 0 ? null : known.reduce((a, b) => a + b, 0) / known.length;
    };
    const total = (pick: (host: HostState) => number | null | undefined) => (fresh.length === 0 ? null : fresh.reduce((sum, host) => sum + (pick(host) ?? 0), 0));
    const figures: [string, string, string][] = [
      ["Hosts", all.length === 0 ? "–" : String(all.length), ""],
      ["Late", String(of("late")), of("late") > 0 ? "warn" : ""],
      ["Lost", String(of("lost")), of("lost") > 0 ? "alarm" : ""],
      ["Avg CPU", percent(mean((host) => host.cpu)), ""],
      ["Avg memory", percent(mean((host) => host.mem)), ""],
      ["Network in", format(total((host) => host.rx), "bytes/s"), ""],
    ];
    if (this.figures.children.length === 0) this.figures.append(...figures.map(([name]) => h("div", {}, h("dt", {}, name), h("dd"))));
    figures.forEach(([, value, kind], i) => {
      const cell = this.figures.children[i]!.lastElementChild as HTMLElement;
      text(cell, value);
      cell.dataset["kind"] = kind;
    });
  }

  private click(event: MouseEvent): void {
    const target = event.target as Element;
    if (target.closest("a") || getSelection()?.toString()) return;
    target.closest("tr")?.querySelector("a")?.click();
  }

  private key(event: KeyboardEvent): void {
    const rows = [...this.body.children];
    const at = rows.findIndex((row) => row.contains(document.activeElement));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to < 0) this.filterBox.focus();
    else rows[Math.min(to, rows.length - 1)]?.querySelector("a")?.focus();
  }
}

class Row {
  readonly root: HTMLElement;
  readonly cpu = new Spark(1, SPARK_POINTS);
  readonly net = new Spark(null, SPARK_POINTS);
  private readonly name: HTMLElement;
  private readonly why = h("span", { class: "why" });
  private readonly state = h("span", { class: "badge" });
  private readonly seen = h("span", { class: "why" });
  private readonly bars = Array.from({ length: 6 }, () => new Bar());
  private readonly texts = Array.from({ length: 7 }, () => h("span", { class: "number" }, "–"));

  constructor(host: HostState) {
    const [cpu, mem, disk, cpuP, memP, ioP] = this.bars as [Bar, Bar, Bar, Bar, Bar, Bar];
    const [cpuT, memT, diskT, fsT, rx, tx, pressure] = this.texts as [HTMLElement, HTMLElement, HTMLElement, HTMLElement, HTMLElement, HTMLElement, HTMLElement];
    this.name = h("a", { href: `#/host/${encodeURIComponent(host.id)}?range=5m`, class: "host" }, host.instance);
    const cell = (label: string, ...children: Node[]) => h("td", { role: "cell", "data-label": label }, ...children);
    this.root = h("tr", { role: "row" },
      h("th", { scope: "row", role: "rowheader" }, this.name, this.why),
      cell("State", h("span", { class: "stack" }, this.state, this.seen)),
      cell("CPU", h("span", { class: "meter wide" }, this.cpu.root, h("span", { class: "stack" }, cpuT, cpu.root))),
      cell("Memory", h("span", { class: "stack" }, memT, mem.root)),
      cell("Disk", h("span", { class: "stack" }, h("span", { class: "pair" }, diskT, fsT), disk.root)),
      cell("Network", h("span", { class: "meter wide" }, this.net.root, h("span", { class: "stack flow" }, rx, tx))),
      cell("Pressure", h("span", { class: "stack" }, pressure, h("span", { class: "trio" }, cpuP.root, memP.root, ioP.root))));
  }

  update(host: HostState, nowMs: number, spark: boolean): void {
    const [cpu, mem, disk, cpuP, memP, ioP] = this.bars as [Bar, Bar, Bar, Bar, Bar, Bar];
    const lost = host.state === "lost";
    const worst = saturation(host);
    this.root.dataset["state"] = host.state;
    text(this.name, host.instance);
    text(this.why, lost ? "not reporting" : severity(worst.share) === "calm" ? subtitle(host) : `high ${worst.what}`);
    this.why.dataset["severity"] = lost ? "alarm" : severity(worst.share);
    text(this.state, STATE_NAMES[host.state] ?? host.state);
    this.state.dataset["state"] = host.state;
    text(this.seen, host.state === "fresh" || !host.last_seen_ms ? "" : ago(nowMs - host.last_seen_ms));
    const show = <T>(value: T) => (lost ? null : value);
    const pressure = host.pressure ?? {};
    const parts: [string, number | null | undefined][] = [["cpu", pressure.cpu], ["mem", pressure.memory], ["i/o", pressure.io]];
    const top = parts.reduce((a, b) => ((b[1] ?? -1) > (a[1] ?? -1) ? b : a));
    const words = [
      percent(show(host.cpu)), percent(show(host.mem)), `${whole(show(host.disk_busy))} busy`, `${whole(show(host.fs))} full`,
      `↓ ${format(show(host.rx), "bytes/s")}`, `↑ ${format(show(host.tx), "bytes/s")}`,
      (top[1] ?? 0) >= 0.0005 && !lost ? `${percent(top[1])} ${top[0]}` : percent(show(top[1])),
    ];
    words.forEach((word, i) => text(this.texts[i]!, word));
    this.texts[3]!.dataset["severity"] = severity(show(host.fs));
    cpu.set(show(host.cpu));
    mem.set(show(host.mem));
    disk.set(show(host.disk_busy));
    [cpuP, memP, ioP].forEach((bar, i) => bar.set(show(parts[i]![1]), pressureSeverity(show(parts[i]![1]))));
    if (!spark) return;
    this.cpu.push(show(host.cpu) ?? null);
    this.net.push(lost ? null : (host.rx ?? 0) + (host.tx ?? 0));
  }
}

function subtitle(host: HostState): string {
  return host.cores ? `${host.cores} ${host.cores === 1 ? "core" : "cores"}, load ${format(host.load1, "number")}` : host.kernel ?? "";
}
