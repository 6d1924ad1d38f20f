// One chart: a card with a title, its explanation, the plot, and a legend whose values follow the cursor.
// uPlot draws; this file decides what the lines are and tells the same in words for who cannot see them.

import uPlot from "uplot";
import { h, text } from "./dom";
import { clock, format, span, tick } from "./format";
import { moment as moments } from "./format";
import type { ChartSpec } from "./charts";
import type { Grid } from "./terms";
import type { Window } from "./view";

export interface Events {
  zoom(window: Window): void;
  reset(): void;
  /** Where the cursor stands, seconds; null when it left. */
  cursor(seconds: number | null): void;
}

const HEIGHT = 184;
const LINES_MAX = 16;
const HEAT_LINES_MIN = 7;
const HEAT_LINES_MAX = 128;
/** Seconds between the marks of the time axis. */
const TIME_STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2419200];
const SYNC = "strobe";
const DRAG_PX_MIN = 8;
const SUMMARY_MS = 10_000;

interface Line {
  name: string;
  color: string;
  dash: number[];
  values: (number | null)[];
}

export class Card {
  readonly root: HTMLElement;
  grid: Grid | null = null;
  private readonly figure: HTMLElement;
  private readonly note = h("p", { class: "note" }, "Loading history…");
  private readonly legend = h("ul", { class: "legend" });
  private readonly summary: HTMLElement;
  private readonly hidden = new Set<string>();
  private plot: uPlot | null = null;
  private cells: Element[] = [];
  private shape = "";
  private lines: Line[] = [];
  private stacked: (number | null)[][] = [];
  private window: Window = { from: 0, to: 1 };
  private visible = false;
  private stale = true;
  private summarised = 0;

  constructor(readonly spec: ChartSpec, private readonly events: Events) {
    const id = `chart-${spec.id}`;
    this.summary = h("p", { class: "sr", id: `${id}-summary` });
    this.figure = h("div", { class: "plot", role: "img", "aria-label": `${spec.title}: chart`, "aria-describedby": `${id}-summary` });
    this.legend.dataset["rows"] = String(spec.legendRows);
    this.legend.toggleAttribute("data-wide", spec.mirrored === true);
    this.root = h("article", { class: "card", id, "aria-labelledby": `${id}-title` },
      h("h3", { id: `${id}-title` }, spec.title),
      h("p", { class: "explain" }, spec.explain),
      h("div", { class: "stage" }, this.figure, this.note),
      this.legend, this.summary);
    new IntersectionObserver((entries) => {
      this.visible = entries.some((entry) => entry.isIntersecting);
      if (this.visible && this.stale) this.draw();
    }, { rootMargin: "200px" }).observe(this.root);
    new ResizeObserver(() => this.resize()).observe(this.figure);
  }

  /** Says in words why there is nothing to see; null takes the words away. */
  say(words: string | null, kind: "loading" | "empty" | "error" = "loading"): void {
    this.note.hidden = words === null;
    this.note.dataset["kind"] = kind;
    text(this.note, words ?? "");
  }

  busy(is: boolean): void {
    this.root.toggleAttribute("data-busy", is);
  }

  /** Pixels of the plot from side to side. */
  get width(): number {
    return Math.max(100, this.figure.clientWidth - 100);
  }

  /** Shows the grid in the window; cheap while the card is out of sight. */
  show(window: Window): void {
    this.window = window;
    this.stale = true;
    if (this.visible) this.draw();
  }

  /** Colours come from the style sheet, so another theme is another drawing. */
  retheme(): void {
    this.shape = "";
    this.show(this.window);
  }

  destroy(): void {
    this.plot?.destroy();
    this.plot = null;
  }

  private draw(): void {
    this.stale = false;
    const grid = this.grid;
    if (!grid) {
      this.scale();
      return;
    }
    const { lines, left } = this.select(grid);
    this.lines = lines;
    if (lines.length === 0) {
      this.say(this.quiet(grid), "empty");
    } else {
      this.say(null);
    }
    this.stacked = this.spec.stacked ? cumulate(lines, this.hidden, grid.times.length) : lines.map((line) => line.values);
    const shape = lines.map((line) => line.name).join("\n") + [...this.hidden].join();
    const data = [grid.times, ...this.stacked] as uPlot.AlignedData;
    if (!this.plot || shape !== this.shape) this.build(data, left);
    else this.plot.setData(data, false);
    this.shape = shape;
    this.scale();
    this.values(this.plot?.cursor.idx ?? null);
    this.summarise();
  }

  private quiet(grid: Grid): string {
    const known = [...grid.lines.values()].some((values) => values.some((value) => value !== null));
    return known || grid.lines.size > 0 ? "No samples in this window." : this.spec.none;
  }

  private scale(): void {
    this.plot?.batch(() => {
      this.plot!.setScale("x", { min: this.window.from / 1000, max: this.window.to / 1000 });
    });
  }

  /** The lines to draw: all, or the largest where there are too many to tell apart. */
  private select(grid: Grid): { lines: Line[]; left: number } {
    let all = [...grid.lines].filter(([, values]) => values.some((value) => value !== null));
    const places = new Map(all.map(([name], i) => [name, i]));
    const idle = this.spec.mirrored ? idlers(all) : new Set<string>();
    all = all.filter(([name]) => !idle.has(name));
    const most = this.spec.heat ? HEAT_LINES_MAX : LINES_MAX;
    const left = Math.max(0, all.length - most);
    if (left > 0) {
      const weight = new Map(all.map(([name, values]) => [name, values.reduce<number>((sum, v) => sum + Math.abs(v ?? 0), 0)]));
      const keep = new Set([...all].sort((a, b) => weight.get(b[0])! - weight.get(a[0])!).slice(0, most).map(([name]) => name));
      all = all.filter(([name]) => keep.has(name));
    }
    const palette = colors();
    const free = getComputedStyle(document.documentElement).getPropertyValue("--edge-strong").trim();
    const heat = isHeat(this.spec, all.length);
    const lines = all.map(([name, values]) => {
      const i = places.get(name)!;
      const place = heat ? 0 : this.spec.mirrored ? i >> 1 : i;
      const dash = this.spec.mirrored && i % 2 === 1 ? [4, 3] : place >= palette.length ? [6, 3] : [];
      // What is free is ground, not matter: it gets no colour of its own.
      const color = heat ? palette[0]! : name === "Free" ? free : palette[place % palette.length]!;
      return { name, values, color, dash };
    });
    return { lines, left: left + idle.size };
  }

  private build(data: uPlot.AlignedData, left: number): void {
    this.plot?.destroy();
    this.plot = new uPlot(this.options(), data, this.figure);
    touch(this.plot, (window) => this.events.zoom(window));
    const entries = this.lines.map((line) => this.entry(line));
    this.cells = entries.map((entry) => entry.querySelector(".value")!);
    this.legend.replaceChildren(...entries);
    if (isHeat(this.spec, this.lines.length)) this.legend.prepend(h("li", { class: "more" }, "Each row is a core; the stronger the colour, the busier."));
    if (left > 0) this.legend.append(h("li", { class: "more" }, `${left} more that ${left === 1 ? "is" : "are"} idle or nearly so ${left === 1 ? "is" : "are"} not drawn`));
  }

  private entry(line: Line): HTMLElement {
    const swatch = h("i", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = line.dash.length === 0 ? line.color : `repeating-linear-gradient(90deg, ${line.color} 0 4px, transparent 4px 6px)`;
    const button = h("button", { type: "button", "aria-pressed": String(!this.hidden.has(line.name)), title: `Show or hide ${line.name}` },
      swatch, h("span", { class: "name" }, line.name), h("span", { class: "value" }, "–"));
    button.addEventListener("click", () => {
      if (!this.hidden.delete(line.name)) this.hidden.add(line.name);
      button.setAttribute("aria-pressed", String(!this.hidden.has(line.name)));
      this.shape = "";
      const focused = document.activeElement === button;
      this.draw();
      if (focused) this.cells[this.lines.findIndex((l) => l.name === line.name)]?.closest("button")?.focus();
    });
    return h("li", {}, button);
  }

  private options(): uPlot.Options {
    const style = getComputedStyle(document.documentElement);
    const color = (name: string) => style.getPropertyValue(name).trim();
    const { unit, stacked } = this.spec;
    const heat = isHeat(this.spec, this.lines.length);
    const axis = { stroke: color("--ink-soft"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: color("--grid"), width: 1 } };
    return {
      width: Math.max(120, this.figure.clientWidth),
      height: HEIGHT,
      padding: [8, 26, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        sync: { key: SYNC, scales: ["x", null], filters: { pub: (type) => type !== "mousedown" && type !== "mouseup" && type !== "dblclick" } } as uPlot.Cursor.Sync,
        drag: { x: true, y: false, setScale: false, dist: DRAG_PX_MIN },
        points: { size: 7, show: !heat },
        bind: { dblclick: () => () => (this.events.reset(), null) },
      },
      scales: { x: { time: true, auto: false, range: (_, min, max) => [min, max] }, y: { range: (_, min, max) => this.range(min, max) } },
      axes: [
        { ...axis, size: 28, space: 70, incrs: TIME_STEPS, values: (u, splits) => splits.map((s) => clock(s, (u.scales["x"]!.max ?? 0) - (u.scales["x"]!.min ?? 0))) },
        {
          ...axis, size: this.figure.clientWidth < 420 ? 60 : 72, space: 28, values: (_, splits) => splits.map((v) => (heat ? this.lines[v]?.name ?? "" : tick(v, unit))),
          ...(heat ? { incrs: [1, 2, 4, 8, 16, 32], grid: { show: false } } : {}),
          ...(unit.startsWith("bytes") ? { incrs: Array.from({ length: 56 }, (_, i) => 2 ** i) } : {}),
        },
      ],
      series: [{}, ...this.lines.map((line) => ({
        label: line.name, stroke: line.color, width: stacked ? 1 : 1.5, dash: line.dash, show: !this.hidden.has(line.name), points: { show: false },
        ...(heat ? { paths: () => null } : {}),
        ...(stacked ? { fill: fade(line.color, line.name === "Free" ? 0.1 : 0.55) } : this.lines.length <= 2 && !this.spec.mirrored ? { fill: fade(line.color, 0.12) } : {}),
      }))],
      bands: stacked ? bands(this.lines, this.hidden) : [],
      hooks: {
        ...(heat ? { draw: [(u: uPlot) => rows(u, this.lines, this.hidden)] } : {}),
        setCursor: [(u) => {
          this.values(u.cursor.idx ?? null);
          if (u.cursor.event) this.events.cursor((u.cursor.left ?? -1) < 0 ? null : u.posToVal(u.cursor.left!, "x"));
        }],
        setSelect: [(u) => {
          if (u.select.width < DRAG_PX_MIN) return;
          const [from, to] = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          this.events.zoom({ from: from * 1000, to: to * 1000 });
        }],
      },
    };
  }

  private range(min: number | null, max: number | null): [number, number] {
    const least = this.spec.atLeast ?? 0;
    if (isHeat(this.spec, this.lines.length)) return [0, this.lines.length];
    if (this.spec.mirrored) {
      const size = Math.max(Math.abs(min ?? 0), Math.abs(max ?? 0), 1);
      return [Math.min(-size * 0.08, (min ?? 0) * 1.1), Math.max(size * 0.08, (max ?? 0) * 1.1)];
    }
    const top = Math.max(least, (max ?? 0) * (this.spec.unit === "percent" && (max ?? 0) <= least ? 1 : 1.06));
    return [0, top > 0 ? top : 1];
  }

  /** The legend at index `at`, or at the newest known values. */
  private values(at: number | null): void {
    this.lines.forEach((line, i) => {
      const cell = this.cells[i];
      if (!cell) return;
      const value = at !== null ? line.values[at] ?? null : newest(line.values);
      text(cell, format(value === null ? null : this.spec.mirrored ? Math.abs(value) : value, this.spec.unit));
    });
  }

  private summarise(): void {
    const now = Date.now();
    if (now - this.summarised < SUMMARY_MS && this.summary.textContent) return;
    this.summarised = now;
    const { from, to } = this.window;
    const parts = this.lines.map((line) => {
      const known = line.values.filter((value): value is number => value !== null).map((value) => (this.spec.mirrored ? Math.abs(value) : value));
      const show = (value: number) => format(value, this.spec.unit);
      return `${line.name} now ${show(known[known.length - 1]!)}, between ${show(known.reduce((a, b) => Math.min(a, b)))} and ${show(known.reduce((a, b) => Math.max(a, b)))}`;
    });
    text(this.summary, parts.length === 0 ? "Nothing to show." : `${span(to - from)} up to ${moments(to)}. ${parts.join("; ")}.`);
  }

  private resize(): void {
    const width = this.figure.clientWidth;
    if (this.plot && width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }
}

/** Pairs of lines that lie at zero all the time, unless all of them do. */
function idlers(all: [string, (number | null)[]][]): Set<string> {
  const flat = all.map(([, values]) => values.every((value) => !value));
  const idle = all.flatMap(([name], i) => (flat[i - (i % 2)] && (flat[i - (i % 2) + 1] ?? true) ? [name] : []));
  return new Set(idle.length < all.length ? idle : []);
}

function isHeat(spec: ChartSpec, lines: number): boolean {
  return spec.heat === true && lines >= HEAT_LINES_MIN;
}

/** One row a line, its colour as strong as the value; holes stay holes. */
function rows(u: uPlot, lines: Line[], hidden: Set<string>): void {
  const { ctx, bbox } = u;
  const times = u.data[0];
  const height = bbox.height / lines.length;
  const at = (i: number) => u.valToPos(times[i]!, "x", true);
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  lines.forEach((line, row) => {
    if (hidden.has(line.name)) return;
    ctx.fillStyle = line.color;
    const top = Math.round(bbox.top + bbox.height - (row + 1) * height);
    const tall = Math.max(1, Math.round(bbox.top + bbox.height - row * height) - top - (height > 5 ? 1 : 0));
    for (let i = 1; i < times.length; i += 1) {
      const value = line.values[i];
      if (value === null || value === undefined) continue;
      const left = Math.floor(at(i - 1));
      ctx.globalAlpha = 0.06 + 0.94 * Math.min(1, Math.max(0, value)) ** 1.4;
      ctx.fillRect(left, top, Math.max(1, Math.floor(at(i)) - left), tall);
    }
  });
  ctx.restore();
}

/** A finger drawn sideways selects; up and down still scrolls the page. */
function touch(u: uPlot, zoom: (window: Window) => void): void {
  let start: number | null = null;
  const left = (event: PointerEvent) => Math.min(Math.max(0, event.clientX - u.over.getBoundingClientRect().left), u.over.clientWidth);
  u.over.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" || !event.isPrimary) return;
    start = left(event);
    u.over.setPointerCapture(event.pointerId);
    u.setCursor({ left: start, top: 0 });
  });
  u.over.addEventListener("pointermove", (event) => {
    if (start === null || event.pointerType === "mouse") return;
    const x = left(event);
    u.setSelect({ left: Math.min(start, x), top: 0, width: Math.abs(x - start), height: u.over.clientHeight }, false);
    u.setCursor({ left: x, top: 0 });
  });
  const end = (event: PointerEvent) => {
    if (start === null) return;
    const [a, b] = [start, left(event)];
    start = null;
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (event.type === "pointerup" && Math.abs(b - a) > 2 * DRAG_PX_MIN) zoom({ from: u.posToVal(Math.min(a, b), "x") * 1000, to: u.posToVal(Math.max(a, b), "x") * 1000 });
  };
  u.over.addEventListener("pointerup", end);
  u.over.addEventListener("pointercancel", end);
}

/** Sums from the bottom up; a moment nobody knows stays a gap. */
function cumulate(lines: Line[], hidden: Set<string>, count: number): (number | null)[][] {
  const sums = new Array<number>(count).fill(0);
  const known = Array.from({ length: count }, (_, i) => lines.some((line) => line.values[i] !== null && line.values[i] !== undefined));
  return lines.map((line) => {
    if (hidden.has(line.name)) return line.values;
    return line.values.map((value, i) => (known[i] ? (sums[i] = sums[i]! + (value ?? 0)) : null));
  });
}

/** Fills between neighbours that are shown. */
function bands(lines: Line[], hidden: Set<string>): uPlot.Band[] {
  const shown = lines.flatMap((line, i) => (hidden.has(line.name) ? [] : [i + 1]));
  return shown.slice(1).map((upper, i) => ({ series: [upper, shown[i]!] as [number, number] }));
}

function newest(values: (number | null)[]): number | null {
  for (let i = values.length - 1; i >= 0; i -= 1) if (values[i] !== null) return values[i]!;
  return null;
}

function colors(): string[] {
  const style = getComputedStyle(document.documentElement);
  return Array.from({ length: 8 }, (_, i) => style.getPropertyValue(`--line-${i + 1}`).trim());
}

function fade(color: string, alpha: number): string {
  return `${color}${Math.round(alpha * 255).toString(16).padStart(2, "0")}`;
}
