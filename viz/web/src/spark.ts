// A small line of recent values and a bar of a share. Decoration: the number stands beside it as text.

import { h, svg } from "./dom";
import { severity, type Severity } from "./attention";

const WIDTH = 88;
const HEIGHT = 24;

export class Spark {
  readonly root: SVGElement;
  private readonly line = svg("path", { class: "spark-line" });
  private readonly area = svg("path", { class: "spark-area" });
  private values: (number | null)[] = [];

  /** `top` is the value at the upper edge; null scales to the largest value seen. */
  constructor(private readonly top: number | null, private readonly count: number) {
    this.root = svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line);
  }

  set(values: (number | null)[]): void {
    this.values = values.slice(-this.count);
    this.draw();
  }

  push(value: number | null): void {
    this.values.push(value);
    if (this.values.length > this.count) this.values.shift();
    this.draw();
  }

  private draw(): void {
    const top = this.top ?? Math.max(1, ...this.values.map((value) => value ?? 0));
    const step = WIDTH / (this.count - 1);
    const start = WIDTH - (this.values.length - 1) * step;
    let line = "";
    let area = "";
    let run: string[] = [];
    let runStart = 0;
    const flush = (end: number) => {
      if (run.length > 1) {
        line += `M${run.join("L")}`;
        area += `M${runStart.toFixed(1)} ${HEIGHT}L${run.join("L")}L${end.toFixed(1)} ${HEIGHT}Z`;
      }
      run = [];
    };
    this.values.forEach((value, i) => {
      const x = start + i * step;
      if (value === null) return flush(x - step);
      if (run.length === 0) runStart = x;
      run.push(`${x.toFixed(1)} ${(HEIGHT - 1 - Math.min(1, value / top) * (HEIGHT - 3)).toFixed(1)}`);
    });
    flush(WIDTH);
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
  }
}

export class Bar {
  readonly root: HTMLElement;
  private readonly fill = h("i");

  constructor() {
    this.root = h("span", { class: "bar", "aria-hidden": "true" }, this.fill);
  }

  set(share: number | null | undefined, how: Severity = severity(share)): void {
    const size = Math.min(1, Math.max(0, share ?? 0));
    this.fill.style.transform = `scaleX(${size.toFixed(3)})`;
    this.root.dataset["severity"] = how;
  }
}
