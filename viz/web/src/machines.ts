// Machines beside the hosts that report: those that were found or named and have no agent yet, those that
// are out of use, and what checks say of all of them.

import { hosts, type HostInfo } from "./api";
import { h, text } from "./dom";
import { ago } from "./format";

const LIST_MS = 15_000;
const SHOWN_MAX = 200;
export const STATES: Record<string, string> = { known: "No agent yet", enrolled: "Enrolled", retired: "Retired", fresh: "Fresh", late: "Late", lost: "Lost" };

export class Machines {
  readonly root: HTMLElement;
  private readonly list = h("ul", { class: "machine-list" });
  private readonly note = h("p", { class: "explain" });
  private readonly heading = h("h2", {}, "Machines and checks");

  /** `retired` is told the ids of the hosts that are out of use. */
  constructor(private readonly retired: (ids: ReadonlySet<string>) => void, signal: AbortSignal) {
    this.root = h("section", { class: "machines", hidden: true, "aria-label": "Machines and checks" }, this.heading, this.note, this.list);
    const load = () => { void this.load(signal); };
    const timer = setInterval(() => { if (!document.hidden) load(); }, LIST_MS);
    signal.addEventListener("abort", () => clearInterval(timer));
    load();
  }

  private async load(signal: AbortSignal): Promise<void> {
    let all: HostInfo[];
    try {
      all = await hosts(signal);
    } catch {
      // The table above says that there is no news; this list stays as it was.
      return;
    }
    if (signal.aborted) return;
    this.retired(new Set(all.filter((one) => one.state === "retired" && one.id).map((one) => one.id!)));
    const shown = all.filter(worthALine).sort(compare);
    this.root.hidden = shown.length === 0;
    const down = shown.filter((one) => worst(one) === "down").length;
    text(this.note, `${shown.length} ${shown.length === 1 ? "machine is" : "machines are"} known besides what agents report, ${down === 0 ? "none is down" : `${down} ${down === 1 ? "is" : "are"} down`}. “strobe hosts add” names one, “strobe hosts retire” takes one out of use.`);
    this.list.replaceChildren(...shown.slice(0, SHOWN_MAX).map(line));
    if (shown.length > SHOWN_MAX) this.list.append(h("li", { class: "explain" }, `${shown.length - SHOWN_MAX} more: strobe hosts lists them.`));
  }
}

/** Hosts that report and are not checked are in the table above. */
export function worthALine(one: HostInfo): boolean {
  return !["fresh", "late", "lost"].includes(one.state) || (one.checks ?? []).length > 0;
}

/** The worst that checks say: `down`, `failing`, `up`, or nothing. */
export function worst(one: HostInfo): string {
  const states = (one.checks ?? []).map((check) => check.state);
  return (["down", "failing", "up"] as const).find((state) => states.includes(state)) ?? "";
}

/** What is down first, what is out of use last. */
export function compare(a: HostInfo, b: HostInfo): number {
  const rank = (one: HostInfo) => (one.state === "retired" ? 4 : ["down", "failing", "", "up"].indexOf(worst(one)));
  return rank(a) - rank(b) || a.instance.localeCompare(b.instance, "en", { numeric: true });
}

function line(one: HostInfo): HTMLElement {
  const place = [one.address, one.group ? `group ${one.group}` : "", ...(one.tags ?? []).map((tag) => `#${tag}`)].filter(Boolean).join(" · ");
  const how = one.source && one.source !== "operator" ? `found by ${one.source}` : "";
  const since = one.state === "known" && one.first_seen_ms ? ago(Date.now() - one.first_seen_ms) : "";
  const name = one.id && one.state !== "enrolled" ? h("a", { href: `#/host/${encodeURIComponent(one.id)}?range=5m` }, one.instance) : h("span", {}, one.instance || (one.id ?? ""));
  const checks = (one.checks ?? []).map((check) => h("span", { class: "badge", "data-state": check.state === "down" ? "lost" : check.state === "failing" ? "late" : "fresh" }, `${check.check} ${check.state}`));
  return h("li", { "data-state": worst(one) || one.state },
    h("span", { class: "machine-name" }, name, h("span", { class: "why" }, place)),
    h("span", { class: "machine-state" }, STATES[one.state] ?? one.state, h("span", { class: "why" }, [how, since].filter(Boolean).join(", "))),
    h("span", { class: "machine-checks" }, ...(checks.length > 0 ? checks : [h("span", { class: "why" }, "not checked")])));
}
