// A chart is a few terms and a finish. A term is evaluated twice, to the same numbers: by the broker
// over history (as PromQL) and here over the rows that come in live. The finish turns the keyed
// numbers of one moment into the lines of the chart.

import type { Asked, History } from "./live";
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

/** As the broker takes it. */
export function asked({ metric, how, agg, by, where }: Term): Asked {
  return { metric, how, agg, ...(by ? { by } : {}), ...(where ? { where } : {}) };
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

/** A chart's part of a snapshot, the lines of its terms in their order, finished. */
export function assemble(terms: readonly Term[], answer: readonly History["terms"][number][], grid: Omit<History, "terms">, finish: Finish): Grid {
  const times = Array.from({ length: grid.count }, (_, i) => (grid.from + i * grid.step) / 1000);
  const moments: Moment[] = times.map(() => new Map());
  terms.forEach((term, at) => {
    for (const [label, values] of Object.entries(answer[at] ?? {})) {
      const key = term.by ? `${term.key}|${label}` : term.key;
      values.forEach((value, i) => value !== null && moments[i]?.set(key, value));
    }
  });
  const lines: Grid["lines"] = new Map();
  moments.forEach((moment, i) => {
    if (moment.size === 0) return;
    for (const [name, value] of finish(moment)) {
      if (!lines.has(name)) lines.set(name, new Array<number | null>(grid.count).fill(null));
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
