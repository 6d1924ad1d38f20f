// A chart is a few terms and a finish. A term is evaluated twice, to the same numbers: by the broker
// over history (as PromQL) and here over the rows that come in live. The finish turns the keyed
// numbers of one moment into the lines of the chart.

import type { Reading } from "./rates";

export interface Term {
  /** Prefix of the keys this term gives: `key`, or `key|<label value>` when grouped. */
  key: string;
  metric: string;
  how: "rate" | "value";
  agg: "sum" | "avg" | "max";
  by?: string;
  /** A label and the regular expression it has to match, or (negated) must not. */
  where?: { label: string; not: boolean; pattern: string };
}

export type Moment = Map<string, number>;
export type Lines = Map<string, number | null>;
export type Finish = (moment: Moment) => Lines;

/** Seconds since 1970, and for each line as many values. */
export interface Grid {
  times: number[];
  lines: Map<string, (number | null)[]>;
}

/**
 * The term as PromQL for one host. `windowMs` is what a rate looks back over; `fine` asks for the rate
 * between the last two samples, which is what a live row gives. A gauge is averaged over the window and
 * not taken as it stands, because a plain selector would bridge five minutes of silence.
 */
export function promql(term: Term, selector: string, windowMs: number, fine: boolean): string {
  const where = term.where ? `,${term.where.label}${term.where.not ? "!~" : "=~"}${quoted(term.where.pattern)}` : "";
  // File systems are asked every 5 s (agent.filesystem_interval): a shorter window would show holes.
  const windowLeast = term.metric.startsWith("node_filesystem_") ? 17_500 : 0;
  const series = `${term.metric}{${selector}${where}}[${Math.round(Math.max(windowMs, windowLeast))}ms]`;
  const inner = term.how === "rate" ? `${fine ? "irate" : "rate"}(${series})` : `avg_over_time(${series})`;
  return `${term.agg}${term.by ? ` by (${term.by})` : ""} (${inner})`;
}

/** All terms of a chart as one query: answers carry their term's key in the label `term`. */
export function question(terms: readonly Term[], selector: string, windowMs: number, fine: boolean): string {
  const tagged = (term: Term) => `label_replace(${promql(term, selector, windowMs, fine)}, "term", ${quoted(term.key)}, "", "")`;
  return terms.map(tagged).join(" or ");
}

/** Label text that is safe inside a quoted PromQL string. */
export function quoted(text: string): string {
  return `"${text.replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n")}"`;
}

/** The terms over one live point's readings. */
export function evaluate(terms: readonly Term[], readings: ReadonlyMap<string, Reading[]>): Moment {
  const moment: Moment = new Map();
  for (const term of terms) {
    const pattern = term.where ? new RegExp(`^(?:${term.where.pattern})$`) : null;
    const counts = new Map<string, number>();
    for (const { labels, value } of readings.get(term.metric) ?? []) {
      if (value === null) continue;
      if (pattern && pattern.test(labels[term.where!.label] ?? "") === term.where!.not) continue;
      const key = keyOf(term, labels);
      const before = moment.get(key);
      const count = (counts.get(key) ?? 0) + 1;
      counts.set(key, count);
      moment.set(key, before === undefined ? value : fold(term.agg, before, value, count));
    }
  }
  return moment;
}

export function keyOf(term: Term, labels: Record<string, string>): string {
  return term.by ? `${term.key}|${labels[term.by] ?? ""}` : term.key;
}

/** The broker's answer to a `question`, on the common grid and finished. */
export function assemble(
  terms: readonly Term[],
  answer: readonly { labels: Record<string, string>; points: [number, number][] }[],
  grid: { from: number; to: number; step: number },
  finish: Finish,
): Grid {
  const count = Math.floor((grid.to - grid.from) / grid.step + 1e-9) + 1;
  const times = Array.from({ length: count }, (_, i) => (grid.from + i * grid.step) / 1000);
  const moments: Moment[] = times.map(() => new Map());
  const known = new Map(terms.map((term) => [term.key, term]));
  for (const { labels, points } of answer) {
    const term = known.get(labels["term"] ?? "");
    if (!term) continue;
    const key = keyOf(term, labels);
    for (const [seconds, value] of points) {
      const index = Math.round((seconds * 1000 - grid.from) / grid.step);
      if (Number.isFinite(value)) moments[index]?.set(key, value);
    }
  }
  const lines: Grid["lines"] = new Map();
  moments.forEach((moment, i) => {
    if (moment.size === 0) return;
    for (const [name, value] of finish(moment)) {
      if (!lines.has(name)) lines.set(name, new Array<number | null>(count).fill(null));
      lines.get(name)![i] = value;
    }
  });
  return { times, lines };
}

/** Forgets the end of which nothing is known: live points belong there, whatever the clocks say. */
export function trimEnd(grid: Grid): void {
  const columns = [...grid.lines.values()];
  let count = grid.times.length;
  while (count > 0 && columns.every((values) => values[count - 1] === null)) count -= 1;
  if (columns.length === 0) count = 0;
  grid.times.length = count;
  for (const values of columns) values.length = count;
}

/** Puts a live point behind the grid, or in the place of an unfinished last one. */
export function append(grid: Grid, seconds: number, lines: Lines, replace: boolean): void {
  const last = grid.times.length - 1;
  const index = replace && last >= 0 ? last : last + 1;
  grid.times[index] = seconds;
  for (const [name, values] of grid.lines) values[index] = lines.get(name) ?? null;
  for (const [name, value] of lines) {
    if (grid.lines.has(name)) continue;
    const values = new Array<number | null>(index + 1).fill(null);
    values[index] = value;
    grid.lines.set(name, values);
  }
}

/** Forgets what lies before `seconds`. */
export function trim(grid: Grid, seconds: number): void {
  let count = 0;
  while (count < grid.times.length && grid.times[count]! < seconds) count += 1;
  if (count === 0) return;
  grid.times.splice(0, count);
  for (const values of grid.lines.values()) values.splice(0, count);
}

function fold(agg: Term["agg"], before: number, value: number, count: number): number {
  if (agg === "max") return Math.max(before, value);
  return agg === "sum" ? before + value : before + (value - before) / count;
}
