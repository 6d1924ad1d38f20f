// One host: its charts over a window that follows the clock or is held still.
//
// A snapshot of the window comes first, then rows are added behind it as they arrive. Both go through the
// same terms, so the line does not change its meaning where one meets the other. A page that was too slow
// for the rows gets another snapshot, which stands in the place of all it had.

import { STATES } from "./machines";
import { h, text } from "./dom";
import { ago, moment } from "./format";
import { GROUPS, METRICS, TERMS } from "./charts";
import { Bursts } from "./bursts";
import { Busy } from "./busy";
import { Card } from "./plot";
import { Tracker, type Point, type Reading } from "./rates";
import { append, asked, assemble, evaluate, trim, trimEnd } from "./terms";
import { hosts, type HostInfo } from "./api";
import { print, rangeMs, windowOf, type Host, type Window } from "./view";
import { Toolbar } from "./toolbar";
import type { History, Live, Message } from "./live";

const FACTS_MS = 5000;
/** History that could not be read is asked for again after this. */
const AGAIN_MS = 5000;
/** Sections of one sample come as separate rows; they are taken together after this. */
const TICK_MS = 60;

export class HostPage {
  readonly root: HTMLElement;
  private readonly cards: Card[];
  private readonly toolbar: Toolbar;
  private readonly bursts: Bursts;
  private readonly busy = new Busy();
  private readonly title = h("h1", { tabindex: "-1" }, "Host");
  private readonly badge = h("span", { class: "badge" });
  private readonly facts = h("p", { class: "facts" });
  private readonly trouble = h("p", { class: "note page-note", role: "alert", hidden: true });
  private readonly charts = h("div", { class: "groups" });
  private info: HostInfo | null = null;
  private tracker: Tracker | null = null;
  private step = 1000;
  private interval = 1000;
  private tailOpen = new WeakMap<Card, boolean>();
  private tick = 0;
  private factsTimer = 0;
  private again = 0;
  private shown: Window = { from: 0, to: 0 };
  private stopped = false;

  constructor(private readonly live: Live, private view: Host, private readonly changed: (view: Host) => void) {
    const events = {
      zoom: (window: Window) => this.hold(window),
      reset: () => this.go({ ...this.view, held: null }),
      cursor: (seconds: number | null) => this.toolbar.cursor(seconds === null ? null : moment(seconds * 1000)),
    };
    this.cards = GROUPS.flatMap((group) => group.charts.map((spec) => new Card(spec, events)));
    this.toolbar = new Toolbar({
      range: (name) => this.go({ ...this.view, range: name, held: null }),
      window: (window) => this.hold(window),
      pause: () => (this.view.held ? this.go({ ...this.view, held: null }) : this.hold(this.shown)),
      move: (shift, scale) => this.move(shift, scale),
    });
    this.bursts = new Bursts((burst) => print({ ...this.view, burst }));
    for (const group of GROUPS) {
      const own = this.cards.filter((card) => group.charts.includes(card.spec));
      const id = `group-${group.title.toLowerCase()}`;
      this.charts.append(h("section", { "aria-labelledby": id }, h("h2", { id }, group.title), h("div", { class: "grid" }, ...own.map((card) => card.root))));
    }
    // Below the processor's charts: who it is that keeps it busy.
    this.charts.firstElementChild?.after(this.busy.root);
    this.root = h("div", { class: "page" },
      h("nav", { class: "crumbs", "aria-label": "Breadcrumb" }, h("a", { href: "#/" }, h("span", { "aria-hidden": "true" }, "‹ "), "Fleet")),
      h("div", { class: "page-head" }, h("div", { class: "name-line" }, this.title, this.badge), this.facts),
      this.toolbar.root, this.trouble, this.bursts.open, this.charts, this.bursts.list);
    this.toolbar.show(this.view, this.window());
    // Behind this turn the page stands in the document, and the charts have a width.
    queueMicrotask(() => this.load());
    void this.refreshFacts();
    this.factsTimer = window.setInterval(() => void this.refreshFacts(), FACTS_MS);
  }

  stop(): void {
    this.stopped = true;
    clearTimeout(this.tick);
    clearTimeout(this.again);
    clearInterval(this.factsTimer);
    for (const card of this.cards) card.destroy();
    this.bursts.stop();
    this.busy.stop();
  }

  retheme(): void {
    for (const card of this.cards) card.retheme();
    this.bursts.retheme();
  }

  /** The URL changed under us (a link, back): show that. */
  navigate(view: Host): void {
    const { burst } = view;
    const moved = print({ ...view, burst: null }) !== print({ ...this.view, burst: null });
    this.view = view;
    // A burst is opened or closed: the charts below go on as they are.
    if (!moved) return this.bursts.show(burst);
    this.load();
  }

  private async refreshFacts(): Promise<void> {
    try {
      const all = await hosts();
      if (this.stopped) return;
      const found = all.find((host) => host.id === this.view.id);
      if (!found) return this.fail("No host has this name here. It may have been removed, or the link is from another installation.");
      this.info = found;
      this.bursts.of(found.instance);
      this.busy.of(found.instance);
      this.trouble.hidden = true;
      this.charts.hidden = this.toolbar.root.hidden = false;
      this.say(found);
    } catch (error) {
      if (!this.stopped && !this.info) this.fail(String((error as Error).message));
    }
  }

  private say(info: HostInfo): void {
    text(this.title, info.instance);
    document.title = `${info.instance} · Strobe`;
    text(this.badge, STATES[info.state] ?? info.state);
    this.badge.dataset["state"] = info.state;
    const seen = info.last_seen_ms && info.state !== "fresh" ? `last heard ${ago(Date.now() - info.last_seen_ms)}` : null;
    const place = [info.group ? `group ${info.group}` : "", ...(info.tags ?? []).map((tag) => `#${tag}`)].filter(Boolean).join(" ");
    const facts = [info.kernel ? `Linux ${info.kernel.replace(/^Linux /, "")}` : null, info.version ? `agent ${info.version}` : null, info.interval_ms ? `every ${info.interval_ms / 1000} s` : null, place, seen];
    text(this.facts, facts.filter(Boolean).join(" · "));
  }

  private fail(words: string): void {
    text(this.trouble, words);
    this.trouble.hidden = false;
    this.charts.hidden = this.toolbar.root.hidden = this.bursts.open.hidden = true;
  }

  private go(view: Host): void {
    this.view = view;
    this.changed(view);
    this.load();
  }

  private hold(window: Window): void {
    this.go({ ...this.view, held: windowOf(window.from, window.to) });
  }

  private move(shift: number, scale: number): void {
    const { from, to } = this.window();
    const [size, middle] = [to - from, (from + to) / 2 + shift * (to - from)];
    const end = Math.min(middle + (size * scale) / 2, Date.now());
    this.hold({ from: end - size * scale, to: end });
  }

  private window(): Window {
    if (this.view.held) return this.view.held;
    const now = Date.now();
    return { from: now - rangeMs(this.view.range)!, to: now };
  }

  private load(): void {
    if (this.stopped) return;
    clearTimeout(this.again);
    this.again = 0;
    this.tracker = null;
    const window = this.window();
    this.shown = window;
    this.toolbar.show(this.view, window);
    this.bursts.show(this.view.burst);
    this.busy.show(window, !this.view.held);
    for (const card of this.cards) {
      card.busy(true);
      if (!card.grid) card.say("Loading history…");
      card.show(window);
    }
    const { held } = this.view;
    const time = held ? { from_ms: held.from, to_ms: held.to } : { range_ms: rangeMs(this.view.range)! };
    const history = { ...time, pixels: this.cards[0]?.width ?? 300, terms: TERMS.map(asked) };
    this.live.watch({ host: this.view.id, names: [...METRICS], rows: !held, history }, (message) => this.message(message));
  }

  private message(message: Message): void {
    if (message.type === "snapshot") {
      const { data, error } = message.answer;
      if (data) this.fill(data);
      else this.unread(error ?? "Strobe does not say why");
    } else if (message.type === "columns") {
      this.tracker?.columns(message.section, message.schema, message.columns);
    } else if (message.type === "row") {
      this.tracker?.row(message.section, message.schema, message.t, message.v);
      this.tick ||= window.setTimeout(() => this.flush(), TICK_MS);
    }
  }

  private fill(history: History): void {
    this.step = history.step;
    this.interval = history.interval_ms;
    this.tracker = new Tracker(this.step, this.interval);
    let at = 0;
    for (const card of this.cards) {
      const { terms, finish } = card.spec;
      card.grid = assemble(terms, history.terms.slice(at, at + terms.length), history, finish);
      at += terms.length;
      if (!this.view.held) trimEnd(card.grid);
      this.tailOpen.set(card, false);
      card.show(this.shown);
      card.busy(false);
    }
  }

  private unread(why: string): void {
    for (const card of this.cards) {
      card.busy(false);
      card.grid = null;
      card.say(`History could not be read: ${why}. Trying again.`, "error");
    }
    this.again ||= window.setTimeout(() => this.load(), AGAIN_MS);
  }

  private flush(): void {
    this.tick = 0;
    const point = this.view.held ? null : this.tracker?.point();
    if (!point) return;
    this.shown = { from: point.t - rangeMs(this.view.range)!, to: point.t };
    this.toolbar.show(this.view, this.shown);
    for (const card of this.cards) {
      if (!card.grid) continue;
      this.add(card, point);
      trim(card.grid, (this.shown.from - 2 * this.step) / 1000);
      card.show(this.shown);
    }
  }

  private add(card: Card, point: Point): void {
    const grid = card.grid!;
    const seconds = point.t / 1000;
    const last = grid.times[grid.times.length - 1] ?? 0;
    const open = this.tailOpen.get(card) ?? false;
    if (seconds <= last) return;
    const hole = point.gap || (last > 0 && seconds - last > (3.5 * Math.max(this.step, this.interval)) / 1000);
    if (hole && !open) append(grid, last + this.step / 1000, new Map(), false);
    const lines = point.gap ? new Map() : card.spec.finish(evaluate(card.spec.terms, index(point)));
    append(grid, seconds, lines, open);
    this.tailOpen.set(card, !point.closed);
  }
}

const indexes = new WeakMap<Point, Map<string, Reading[]>>();

/** A point's readings by metric, made once for all charts. */
function index(point: Point): Map<string, Reading[]> {
  let found = indexes.get(point);
  if (!found) {
    found = new Map();
    for (const reading of point.readings) {
      const same = found.get(reading.name);
      if (same) same.push(reading);
      else found.set(reading.name, [reading]);
    }
    indexes.set(point, found);
  }
  return found;
}
