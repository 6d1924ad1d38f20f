// What is looked at, and the ways to look elsewhere: ranges, a custom window, steps, pause. All of what
// dragging on a chart does can be done here from the keyboard.

import { h, text } from "./dom";
import { moment } from "./format";
import { RANGES, type Host, type Window } from "./view";

interface Verbs {
  range(name: string): void;
  window(window: Window): void;
  pause(): void;
  /** Moves the window by a share of its size, then scales it. */
  move(shift: number, scale: number): void;
}

export class Toolbar {
  readonly root: HTMLElement;
  private readonly ranges: HTMLButtonElement[];
  private readonly pause = h("button", { type: "button", class: "pause" }, "Pause");
  private readonly when = h("span", { class: "when" });
  private readonly at = h("span", { class: "at", "aria-hidden": "true" });
  private readonly dialog: HTMLDialogElement;
  private readonly from = h("input", { type: "datetime-local", step: "1", id: "from", required: true });
  private readonly to = h("input", { type: "datetime-local", step: "1", id: "to", required: true });
  private readonly wrong = h("p", { class: "wrong", role: "alert" });
  private window: Window = { from: 0, to: 0 };

  constructor(private readonly verbs: Verbs) {
    this.ranges = RANGES.map((name) => button(name, `${name}: the last ${words(name)}`, () => verbs.range(name)));
    const custom = button("Custom…", "Custom… window of time", () => this.open());
    this.dialog = this.form();
    this.pause.addEventListener("click", () => verbs.pause());
    this.root = h("section", { class: "toolbar", "aria-label": "Time" },
      h("div", { class: "segments", role: "group", "aria-label": "Range" }, ...this.ranges, custom),
      h("div", { class: "segments", role: "group", "aria-label": "Move the window" },
        button("‹", "Earlier", () => verbs.move(-0.5, 1)), button("›", "Later", () => verbs.move(0.5, 1)),
        button("−", "Zoom out", () => verbs.move(0, 2)), button("+", "Zoom in", () => verbs.move(0, 0.5))),
      this.pause, h("p", { class: "times" }, this.at, this.when), this.dialog);
  }

  show(view: Host, window: Window): void {
    this.window = window;
    const live = view.held === null;
    this.ranges.forEach((button) => button.setAttribute("aria-pressed", String(live && button.textContent === view.range)));
    text(this.pause, live ? "Pause" : "Back to live");
    this.pause.dataset["live"] = String(live);
    const [from, to] = [moment(window.from), moment(window.to)];
    text(this.when, from.slice(0, 10) === to.slice(0, 10) ? `${from} – ${to.slice(11)}` : `${from} – ${to}`);
  }

  cursor(when: string | null): void {
    text(this.at, when === null ? "" : `at ${when.slice(11)}`);
  }

  private open(): void {
    this.from.value = local(this.window.from);
    this.to.value = local(this.window.to);
    text(this.wrong, "");
    this.dialog.showModal();
  }

  private form(): HTMLDialogElement {
    const form = h("form", { method: "dialog" },
      h("h2", { id: "custom-title" }, "A window of time"),
      h("label", { for: "from" }, "From"), this.from, h("label", { for: "to" }, "To"), this.to, this.wrong,
      h("div", { class: "row" }, h("button", { type: "button", class: "cancel" }, "Cancel"), h("button", { type: "submit", class: "primary" }, "Show")));
    form.querySelector(".cancel")!.addEventListener("click", () => this.dialog.close());
    form.addEventListener("submit", (event) => {
      const [from, to] = [Date.parse(this.from.value), Date.parse(this.to.value)];
      if (from < to) return this.verbs.window({ from, to });
      event.preventDefault();
      text(this.wrong, "The start has to lie before the end.");
    });
    return h("dialog", { "aria-labelledby": "custom-title" }, form);
  }
}

function button(label: string, title: string, act: () => void): HTMLButtonElement {
  const element = h("button", { type: "button", title, "aria-label": title }, label);
  element.addEventListener("click", act);
  return element;
}

function words(name: string): string {
  const units: Record<string, string> = { s: "second", m: "minute", h: "hour", d: "day" };
  const count = Number(name.slice(0, -1));
  return `${count} ${units[name.slice(-1)]}${count === 1 ? "" : "s"}`;
}

function local(ms: number): string {
  return moment(ms).replace(" ", "T");
}
