// Rows of raw columns become values: a counter's rate, a gauge's reading.
//
// A Tracker keeps one base row a section. A value is measured from the base to the newest row; once
// `stepMs` has passed the base moves up ("closes"). A counter that went down was reset, and a section
// whose schema changed starts anew: both give null for one step, because a rate across them is a guess.

export interface Column {
  name: string;
  labels: Record<string, string>;
  kind: "counter" | "gauge" | "float";
}

export interface Reading {
  name: string;
  labels: Record<string, string>;
  value: number | null;
}

export interface Point {
  /** Wall time of the newest row, ms. */
  t: number;
  /** The step is full: the next point stands after this one, not in its place. */
  closed: boolean;
  /** Nothing came for several steps before this point. */
  gap: boolean;
  readings: Reading[];
}

interface Section {
  columns: Column[];
  schema: string;
  base: Row | null;
  newest: Row | null;
}

interface Row {
  t: number;
  v: (number | null)[];
}

/** Reset-safe rate per second; null where there is none to know. */
export function rate(before: number | null, after: number | null, ms: number): number | null {
  if (before === null || after === null || ms <= 0 || after < before) return null;
  return ((after - before) * 1000) / ms;
}

export class Tracker {
  private readonly sections = new Map<string, Section>();
  private baseT: number | null = null;
  private newestT = 0;

  constructor(private readonly stepMs: number, private readonly intervalMs: number) {}

  columns(section: string, schema: string, columns: Column[]): void {
    this.sections.set(section, { columns, schema, base: null, newest: null });
  }

  /** False if the row's schema was never announced: it cannot be read. */
  row(section: string, schema: string, t: number, v: (number | null)[]): boolean {
    const known = this.sections.get(section);
    if (!known || known.schema !== schema || v.length !== known.columns.length) return false;
    if (known.newest && t <= known.newest.t) return true;
    known.newest = { t, v };
    known.base ??= known.newest;
    this.newestT = Math.max(this.newestT, t);
    return true;
  }

  /** What the rows since the last call say; null if none came. */
  point(): Point | null {
    if (this.newestT === 0 || this.newestT === this.baseT) return null;
    if (this.baseT === null) {
      this.close();
      return null;
    }
    const span = this.newestT - this.baseT;
    const gap = span > 3.5 * Math.max(this.intervalMs, 0) + Math.max(this.stepMs - this.intervalMs, 0);
    const readings: Reading[] = [];
    for (const section of this.sections.values()) read(section, readings);
    const closed = gap || span >= this.stepMs - this.intervalMs / 2;
    const point = { t: this.newestT, closed, gap, readings };
    if (closed) this.close();
    return point;
  }

  private close(): void {
    this.baseT = this.newestT;
    for (const section of this.sections.values()) section.base = section.newest;
  }
}

function read(section: Section, into: Reading[]): void {
  const { base, newest, columns } = section;
  if (!newest) return;
  for (let i = 0; i < columns.length; i += 1) {
    const column = columns[i]!;
    const after = newest.v[i] ?? null;
    const before = base?.v[i] ?? null;
    const value = column.kind === "counter" ? rate(before, after, newest.t - (base?.t ?? newest.t)) : after;
    into.push({ name: column.name, labels: column.labels, value });
  }
}
